"""Compare guaranteed and measured errors, for several depths and random lengths and norms."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments import curves, measure, options
from experiments.folder import RunFolder, Sweep
from experiments.guarantees import plots_bounds
from experiments.guarantees.trial import Shape, bounded, make_trial
from slth_jax import checks, construction

FLOAT64 = True


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of a run.

    Attributes:
      seeds: the number of trials per setting; each trial draws a target, a source and an input.
      rules: the rules that assign hidden units to input coordinates.
      dims: the widths d of the transformers.
      heads: the numbers of heads, one per entry of `dims`.
      units: numbers of hidden units of the source per input coordinate: n_MHA = n_FC = units * d.
      depths: numbers of blocks B. A transformer of the largest depth is drawn; smaller depths use
        the first blocks of this transformer.
    """

    seeds: int = 560
    rules: tuple[str, ...] = ("proof", "reach", "fitted")
    dims: tuple[int, ...] = (2, 4)
    heads: tuple[int, ...] = (2, 1)
    units: tuple[int, ...] = (6, 10, 16)
    depths: tuple[int, ...] = (1, 2, 3, 4, 6, 8)

    def __post_init__(self):
        options.check(
            self,
            least={"dims": 1, "heads": 1, "units": 4, "depths": 1},
            words={"rules": construction.CONSTRUCTIONS},
        )
        if len(self.heads) != len(self.dims):
            raise checks.fail("heads", "as many as dims", self.heads)


PRESETS = {
    "quick": Config(seeds=60, dims=(2,), heads=(2,), units=(6, 12)),
    "paper": Config(),
}


def sweeps(config: Config) -> list[Sweep]:
    """Return the sweeps that `run` runs, so that the cost of `run` can be estimated."""
    return [
        Sweep(
            f"{shape.rule}, d = {shape.d}",
            make_trial(shape),
            grid={"width": tuple(shape.d * n for n in config.units)},
            padded=("width",),
            part=f"{shape.rule}-d{shape.d}-h{shape.heads}",
        )
        for shape in _shapes(config)
    ]


def _shapes(config: Config) -> list[Shape]:
    return [
        Shape(rule, d, heads, max(config.depths))
        for rule in config.rules
        for d, heads in zip(config.dims, config.heads, strict=True)
    ]


def run(config: Config, out: RunFolder) -> dict[str, Any]:
    """Compute all tickets, measure and bound their errors, fit slopes and plot the figure."""
    trials: list[dict[str, Any]] = []
    for shape, sweep in zip(_shapes(config), sweeps(config), strict=True):
        results = out.sweep(sweep)
        with out.progress(f"bounds, {sweep.part}") as update:
            for done, rows in enumerate(bounded(shape, results, config.depths)):
                trials += rows
                update(done + 1, len(results.rows))
    out.write_rows(trials)
    rows = measure.summarize(
        trials,
        ("rule", "d", "heads", "width", "num_blocks"),
        violations=("violated", sum),
        violations_on=("violated_on", sum),
        vacuous=("vacuous", measure.mean),
        vacuous_on=("vacuous_on", measure.mean),
        ratio=("ratio", np.median),
        ratio_on=("ratio_on", np.median),
    )
    points = plots_bounds.medians(trials, config.depths)
    out.figure(plots_bounds.growth(points), "bounds")
    return {
        "rows": rows,
        "medians": points,
        "trials": len(trials) // len(config.depths),
        "comparisons": len(trials),
        "violations": sum(row["violated"] for row in trials),
        "violations_on": sum(row["violated_on"] for row in trials),
        "on_inputs_above_all": sum(row["bound_on"] > row["bound"] for row in trials),
        "by_depth": measure.summarize(
            trials,
            ("num_blocks",),
            vacuous=("vacuous", measure.mean),
            vacuous_on=("vacuous_on", measure.mean),
            ratio=("ratio", np.median),
            ratio_on=("ratio_on", np.median),
        ),
        "fit": slopes(trials),
        "checks": check(trials),
        "paper": {
            "statement": "errors within epsilon at every T; widths grow with log(alpha^3), and "
            "by a constant factor in epsilon for every further block (Theorems 9, 11, 14)"
        },
    }


def check(trials: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Count, for each of the two bounds, the measured errors that are within the bound."""
    checked = []
    for violated, inputs in (("violated", "all inputs"), ("violated_on", "the given input")):
        broken = sum(row[violated] for row in trials)
        checked.append(
            {
                "what": f"measured errors within the bound for {inputs}",
                "here": f"{len(trials) - broken} of {len(trials)}",
                "holds": broken == 0,
            }
        )
    return checked


def slopes(trials: Sequence[dict[str, Any]], floor: float = 1e-12) -> dict[str, Any]:
    """Fit the logarithm of the error, and of each bound, by linear functions; return the slopes.

    For each depth, the variables are log alpha and log T, and each setting has an intercept. Over
    all depths, the variable is the depth B, and each trial has an intercept. The slope in B is the
    logarithm of the factor by which one more block multiplies the error or bound. Tickets with an
    error up to `floor` are left out.
    """
    used = [row for row in trials if row["error"] > floor]
    fitted: dict[str, Any] = {}
    for kind in plots_bounds.KINDS:
        by_depth = {}
        for depth in sorted({row["num_blocks"] for row in used}):
            rows = [row for row in used if row["num_blocks"] == depth]
            by = [np.log([row[name] for row in rows]) for name in ("alpha", "length")]
            fit = curves.within(_settings(rows), by, np.log([row[kind] for row in rows]))
            by_depth[str(depth)] = dict(zip(("alpha", "length"), fit, strict=True)) if fit else {}
        trial = [(*key, row["seed"]) for key, row in zip(_settings(used), used, strict=True)]
        depth_fit = curves.within(
            trial,
            [np.array([row["num_blocks"] for row in used], float)],
            np.log([row[kind] for row in used]),
        )
        fitted[kind] = {"by_depth": by_depth, "block": depth_fit[0] if depth_fit else {}}
    return fitted


def _settings(rows: Sequence[dict[str, Any]]) -> list[tuple]:
    return [tuple(row[name] for name in ("rule", "d", "heads", "width")) for row in rows]
