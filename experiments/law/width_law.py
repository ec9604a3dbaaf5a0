"""The law of widths: the least width at which a random layer has tickets of a given error.

Theorem 3, ``n = O(d log(H d^(3/2) / epsilon))``, bounds the width up to a constant factor. This
experiment measures the least width for several rules and shapes, and compares forms of the law.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments import claims, measure, options
from experiments.folder import RunFolder, Sweep
from experiments.law import crossings, plots_law, regression
from experiments.law.trial import LEVELS, TARGETS, make_trial
from slth_jax import checks, construction

FLOAT64 = True

# A relation counts as linear if its R^2 is at least this number.
LINEAR = 0.9

PAPER: dict[str, Any] = {
    "form": "n = O(d log(H d^(3/2) / eps))",
    "slope": "positive: n / d grows linearly with the logarithm",
    "power_of_d": 1.5,
    "power_of_heads": 1.0,
}


def _sizes(shape: str) -> tuple[int, int]:
    """Return the integers d and H of a shape 'DxH'."""
    d, x, heads = shape.partition("x")
    if not (x and d.isdigit() and heads.isdigit() and int(d) > 0 and int(heads) > 0):
        raise checks.fail("shapes", "of the form DxH, as 8x4", repr(shape))
    return int(d), int(heads)


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of a run.

    Attributes:
      seeds: the number of trials per setting; each trial draws a source, a target and inputs.
      shapes: input widths d and numbers of heads H, each written DxH.
      units: widths of the source, in hidden units per input coordinate (width / d).
      constructions: the rules that assign hidden units to input coordinates.
      targets: distributions of targets: spectral (spectral norm 1) or theory (the theory's
        distribution).
      errors: the output errors for which the least width is measured.
      sequences: the number of input sequences per trial.
      tokens: the number of tokens per sequence.
      norm: the norm of every token, divided by sqrt(d).
    """

    seeds: int = 8
    shapes: tuple[str, ...] = ("2x1", "4x1", "8x1", "16x1", "32x1", "4x4", "8x4", "16x4", "8x16")
    units: tuple[int, ...] = tuple(range(3, 25, 3))
    constructions: tuple[str, ...] = ("fitted", "proof")
    targets: tuple[str, ...] = ("spectral",)
    errors: tuple[float, ...] = (3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003)
    sequences: int = 4
    tokens: int = 8
    norm: float = 1.0

    def __post_init__(self):
        options.check(
            self,
            least={"units": 1, "sequences": 1, "tokens": 1},
            words={"constructions": construction.CONSTRUCTIONS, "targets": TARGETS},
        )
        checks.number("norm", self.norm, low=0, open_low=True)
        for error in self.errors:
            checks.number("errors", error, low=0, open_low=True)
        for shape in self.shapes:
            _sizes(shape)


PRESETS = {
    # About two minutes on two cores.
    "quick": Config(
        seeds=4, shapes=("2x1", "4x1", "8x1", "4x4"), units=(3, 6, 9, 12, 16, 20), sequences=2
    ),
    # About half an hour on two cores.
    "paper": Config(
        seeds=8,
        shapes=(
            *("2x1", "4x1", "8x1", "16x1", "32x1", "64x1", "128x1"),
            *("4x4", "8x4", "16x4", "32x4", "8x16"),
        ),
        units=(3, 5, 7, 9, 11, 13, 15, 17, 20, 24),
        targets=("spectral", "theory"),
    ),
}

# Errors for which `shares` returns the share of sources that suffice.
SHARED = (0.1, 0.01)

# If d is at least LARGE, only the first rule, the first target and every second width are measured.
LARGE = 64


def _settings(config: Config) -> list[dict[str, Any]]:
    """Return a dict per sweep: the values of target, construction, d and heads.

    Shapes with several heads are measured only with the first target. Shapes with d of at least
    `LARGE` are measured only with the first target and the first rule.
    """
    return [
        {"target": target, "construction": rule, "d": d, "heads": heads}
        for i, target in enumerate(config.targets)
        for j, rule in enumerate(config.constructions)
        for d, heads in map(_sizes, config.shapes)
        if (d < LARGE or (i, j) == (0, 0)) and (i == 0 or heads == 1)
    ]


def _sweep(config: Config, setting: dict[str, Any]) -> Sweep:
    d, heads = setting["d"], setting["heads"]
    name = f"{setting['target']}-{setting['construction']}-{d}x{heads}"
    units = config.units[1::2] if d >= LARGE else config.units
    return Sweep(
        name,
        make_trial(
            target=setting["target"],
            num_heads=heads,
            d=d,
            rule=setting["construction"],
            sequences=config.sequences,
            tokens=config.tokens,
            norm=config.norm,
        ),
        grid={"width": tuple(u * d for u in units)},
        padded=("width",),
        # A trial solves 2 H d^2 entries at once, so fewer trials per batch limit the memory.
        batch=max(1, min(16, 16384 // (2 * heads * d * d))),
        chunk=max(2, 65536 // (2 * heads * d * d)),
        part=name,
        kind=setting["construction"],
        work=2 * heads * d * d,
    )


def sweeps(config: Config) -> list[Sweep]:
    """Return the sweeps that `run` runs, so that the cost of `run` can be estimated."""
    return [_sweep(config, setting) for setting in _settings(config)]


def run(config: Config, out: RunFolder) -> dict[str, Any]:
    """Measure errors, interpolate the least widths, fit forms of the law, and plot the figures."""
    rows: list[dict[str, Any]] = []
    for setting in _settings(config):
        results = out.sweep(_sweep(config, setting))
        rows += [{**setting, **row, "units": row["width"] / setting["d"]} for row in results.rows]
        out.write_rows(rows)
    by = ("target", "construction", "d", "heads", "width")
    summary = measure.summarize(
        rows,
        by,
        entry_median=("median", measure.mean),
        worst_share=("worst_share", measure.mean),
        kept=("kept", measure.mean),
    )
    widths = _widths(config, rows)
    figures = {
        "width_law": law_figure(widths, laws := laws_of(widths)),
        "transition": plots_law.transition(of_transition := shares(config, rows)),
        "constructions": plots_law.rivals(summary),
    }
    for name, figure in figures.items():
        out.figure(figure, name)
    first = laws.get(f"{config.targets[0]}, {config.constructions[0]}")
    return {
        "rows": summary,
        "widths": widths,
        "laws": laws,
        "fit": first["line"] if first else None,
        "ratios": _ratios(widths),
        "failures": _failures(rows),
        "transition": of_transition,
        "paper": PAPER,
        "claims": _compare(first),
    }


def shares(config: Config, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return, for each d and width, the share of sources whose ticket has at most a given error.

    Only trials with one head, the first target and the first construction are counted. The given
    errors are the values of `SHARED` that are also in `config.errors`; if there is no such value,
    the only given error is the first of `config.errors`.
    """
    first = {"target": config.targets[0], "construction": config.constructions[0], "heads": 1}
    errors: dict[tuple, list[float]] = {}
    for row in rows:
        if _is(row, **first):
            errors.setdefault((row["d"], row["units"]), []).append(row["error"])
    levels = [eps for eps in SHARED if eps in config.errors] or config.errors[:1]
    return [
        {"d": d, "units": units, "eps": eps, "share": float(np.mean(np.array(of_width) <= eps))}
        for (d, units), of_width in errors.items()
        for eps in levels
    ]


def laws_of(widths: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return a dict from 'TARGET, CONSTRUCTION' to the laws that are fitted to these widths.

    The law of a target and a construction is left out if there are too few widths.
    """
    kinds = dict.fromkeys((row["target"], row["construction"]) for row in widths)
    laws = {
        f"{target}, {rule}": _law([w for w in widths if _is(w, target=target, construction=rule)])
        for target, rule in kinds
    }
    return {name: law for name, law in laws.items() if law}


def law_figure(widths: Sequence[dict[str, Any]], laws: dict[str, Any]) -> Any:
    """Plot the law for the first target and construction."""
    if not widths:
        return plots_law.law([], {})
    first = {name: widths[0][name] for name in ("target", "construction")}
    rows = [row for row in widths if _is(row, **first)]
    return plots_law.law(rows, laws.get(", ".join(first.values()), {}).get("bits", {}))


def _is(row: dict[str, Any], **values: Any) -> bool:
    return all(row[name] == value for name, value in values.items())


def _widths(config: Config, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return, for each error level, the least widths for the mean error and its 95th percentile.

    The 95th percentile is taken over all sources and sequences.
    """
    least = []
    for setting in _settings(config):
        trials = [row for row in rows if _is(row, **setting)]
        widths = sorted({row["width"] for row in trials})
        measured = np.array(
            [[row["of_sequence"] for row in trials if row["width"] == width] for width in widths]
        )
        for eps in config.errors:
            of_mean = crossings.with_interval(widths, measured.mean(axis=2), eps)
            if np.isfinite(of_mean["width"]):
                tail = np.percentile(measured, 95, axis=(1, 2))
                width_95 = crossings.crossing(widths, tail, eps)
                least.append({**setting, "eps": eps, **of_mean, "width_95": width_95})
    return least


def _law(widths: list[dict[str, Any]]) -> dict[str, Any]:
    """Fit all forms of the law for one target and rule; return {} if there are too few widths."""
    if len(widths) < 6:
        return {}
    lines = [regression.line(widths, form) for form in regression.FORMS]
    return {
        "line": lines[0],
        "rivals": lines[1:],
        "free": regression.free(widths),
        "measured": regression.free(widths, small=True),
        "bits": regression.in_bits(widths),
        "count": len(widths),
    }


def _ratios(widths: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the ratio of each rule's width to the width of the rule "proof".

    The two widths of a ratio have the same shape, target and error.
    """
    proof = {
        tuple(w[name] for name in ("target", "d", "heads", "eps")): w["width"]
        for w in widths
        if w["construction"] == "proof"
    }
    ratios = []
    for row in widths:
        key = tuple(row[name] for name in ("target", "d", "heads", "eps"))
        if row["construction"] != "proof" and key in proof:
            names = ("target", "construction", "d", "heads", "eps")
            ratios.append(
                {name: row[name] for name in names} | {"ratio": row["width"] / proof[key]}
            )
    return ratios


def _failures(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Count, for each target and rule, the entries that fail at each of `trial.LEVELS`.

    `failed` is the number of failing entries, and `beyond` is the number of failing entries whose
    target value exceeds the sum of all samples of the value's sign. `beyond_of_small_samples` is
    the number of entries counted in `beyond` for which this sum is unusually small (see `trial`).
    Only tickets whose error is within a factor of three of the level are included.
    """
    counts = []
    for target, rule in dict.fromkeys((row["target"], row["construction"]) for row in rows):
        of_rule = [row for row in rows if _is(row, target=target, construction=rule)]
        for index, level in enumerate(LEVELS):
            near = [row for row in of_rule if level / 3 < row["error"] < level * 3]
            failed, beyond, small = (
                int(sum(row[name][index] for row in near)) for name in ("failed", "beyond", "small")
            )
            counts.append(
                {
                    "target": target,
                    "construction": rule,
                    "level": level,
                    "tickets": len(near),
                    "entries": int(sum(row["entries"] for row in near)),
                    "failed": failed,
                    "beyond": beyond,
                    "beyond_of_small_samples": small,
                }
            )
    return counts


def _compare(law: dict[str, Any] | None) -> list[claims.Claim]:
    """Compare the measured law with the paper's form."""
    if not law:
        return []
    free = law["free"]
    compared = [
        claims.statement(
            "R^2 of n / d as a linear function of log(1 / eps), log d and log H",
            "n / d grows linearly with log(H d^(3/2) / eps)",
            free["r2"],
            free["r2"] >= LINEAR,
            f"R^2 at least {LINEAR}",
        )
    ]
    for name in ("power_of_d", "power_of_heads"):
        if name in free:
            label = f"{name.replace('_', ' ')} in the logarithm"
            se, freedom = free[f"{name}_se"], free[f"{name}_free"]
            compared.append(claims.number(label, PAPER[name], free[name], se, freedom))
    return compared
