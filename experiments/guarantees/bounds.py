"""What is guaranteed against what is measured: depth, input length, input bound at random."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments import claims, curves, measure, options
from experiments.folder import RunFolder, Sweep
from experiments.guarantees import plots_bounds
from experiments.guarantees.trial import Shape, bounded, make_trial
from slth_jax import checks, construction

FLOAT64 = True


@dataclasses.dataclass(frozen=True)
class Config:
    """What a run is repeated from.

    Attributes:
      seeds: trials a setting; each draws its own target, source and input.
      rules: how hidden units are dealt.
      dims: widths d of the transformer.
      heads: heads at each of dims.
      units: hidden units n_MHA = n_FC of the source for each of the d coordinates.
      depths: numbers of blocks B that are looked at; the largest is drawn.
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
    """Return what `run` computes."""
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
    """Prune and measure, bound every ticket twice, compare slopes, draw the figure."""
    trials: list[dict[str, Any]] = []
    for shape, sweep in zip(_shapes(config), sweeps(config), strict=True):
        results = out.sweep(sweep)
        with out.progress(f"bounds, {sweep.part}") as update:
            for done, found in enumerate(bounded(shape, results, config.depths)):
                trials += found
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
    out.figure(plots_bounds.growth(trials, config.depths), "bounds")
    return {
        "rows": rows,
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
        "claims": compare(trials),
        "paper": {
            "statement": "errors within epsilon at every T; widths grow with log(alpha^3), and "
            "by a constant factor in epsilon for every further block (Theorems 9, 11, 14)"
        },
    }


def compare(trials: Sequence[dict[str, Any]]) -> list[claims.Claim]:
    """Say how many measured errors stay below either bound."""
    told = []
    for violated, what in (("violated", "all inputs"), ("violated_on", "the given input")):
        broken = sum(row[violated] for row in trials)
        here = f"{len(trials) - broken} of {len(trials)}"
        words = f"measured errors within the bound for {what}"
        told.append(claims.statement(words, "all", here, broken == 0, "all"))
    return told


def slopes(trials: Sequence[dict[str, Any]], floor: float = 1e-12) -> dict[str, Any]:
    """Return how the logarithm of each quantity grows with log alpha, log T and B.

    Least squares with an intercept for each setting; at every depth for alpha and T, over all
    depths for B (in factors a block). Tickets that err by less than `floor` are left out.
    """
    used = [row for row in trials if row["error"] > floor]
    told: dict[str, Any] = {}
    for kind in plots_bounds.KINDS:
        of = {}
        for depth in sorted({row["num_blocks"] for row in used}):
            here = [row for row in used if row["num_blocks"] == depth]
            by = [np.log([row[name] for row in here]) for name in ("alpha", "length")]
            fit = curves.within(_settings(here), by, np.log([row[kind] for row in here]))
            of[str(depth)] = dict(zip(("alpha", "length"), fit, strict=True)) if fit else {}
        trial = [(*key, row["seed"]) for key, row in zip(_settings(used), used, strict=True)]
        depth_fit = curves.within(
            trial,
            [np.array([row["num_blocks"] for row in used], float)],
            np.log([row[kind] for row in used]),
        )
        told[kind] = {"by_depth": of, "block": depth_fit[0] if depth_fit else {}}
    return told


def _settings(rows: Sequence[dict[str, Any]]) -> list[tuple]:
    return [tuple(row[name] for name in ("rule", "d", "heads", "width")) for row in rows]
