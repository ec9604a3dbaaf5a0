"""Figure 6: the error of a ticket against the width of its source, for 1 to 4 blocks."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import claims, curves, measure, options
from experiments.folder import RunFolder, Sweep
from experiments.paper import data, pictures
from experiments.paper.sources import random_source
from experiments.paper.targets import random_transformer
from slth_jax import construction, transformer
from slth_jax.transformer import Block
from slth_jax.types import Array, Hparams, Key

FLOAT64 = True

PAPER_RANGE = (100, 225)
# Means below this multiple of the rounding error are not fitted, since rounding bends the curve.
ABOVE_FLOOR = 10


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of a run.

    Attributes:
      seeds: the number of random sources per width, which have the seeds 0, 1, ...
      max_blocks: number of blocks of the deepest transformer; every smaller number is measured too.
      widths: the hidden widths n_MHA = n_FC of the source.
      d: the width of the transformer.
      d_k: the width of the target's queries, keys and values.
      length: tokens per test sequence.
      test_sequences: the number of test sequences, over which errors are averaged.
      construction: the rule that assigns hidden units to input coordinates.
      target_seed: the seed of the random target and of the test sequences.
    """

    seeds: int = 100
    max_blocks: int = 4
    widths: tuple[int, ...] = (8, 16, 24, 32, 40, 48, 56, 64, 80, 100, 125, 150, 175, 200, 225)
    d: int = 2
    d_k: int = 8
    length: int = 4
    test_sequences: int = 100
    construction: str = "proof"
    target_seed: int = 0

    def __post_init__(self):
        counts = ("max_blocks", "d_k", "length", "test_sequences")
        options.check(
            self,
            least={"widths": 4, "d": 2, "target_seed": 0} | dict.fromkeys(counts, 1),
            words={"construction": construction.CONSTRUCTIONS},
        )


PRESETS = {
    "quick": Config(
        seeds=10,
        max_blocks=3,
        widths=(8, 16, 24, 32, 48, 64, 100, 150, 225),
        test_sequences=20,
    ),
    "paper": Config(),
}


def make_trial(target: Sequence[Block], x: Array, rule: str):
    """Return the trial function: draw a source, prune it, measure the error on `x [s, t, m]`.

    The metric `error` has an entry for each block: the error of the outputs of that block.
    """

    def trial(key: Key, hparams: Hparams):
        width = hparams["width"]
        size = hparams["width_max"]
        source = random_source(key, target, n_mha=width, n_fc=(width,), padded=(size, (size,)))
        masks = construction.prune_transformer(source, target, construction=rule)
        wide = partial(jax.tree.map, lambda w: w.astype(x.dtype))
        ticket, of_target = wide(construction.apply_masks(source, masks)), wide(tuple(target))

        def worst(sequence: Array) -> Array:
            reached, expected, errors = sequence, sequence, []  # [t, m]
            for from_block, to_block in zip(ticket, of_target, strict=True):
                reached = transformer.apply_block(from_block, reached)
                expected = transformer.apply_block(to_block, expected)
                errors.append(jnp.max(jnp.linalg.norm(reached - expected, axis=-1)))
            return jnp.stack(errors)

        return {"error": jnp.mean(jax.vmap(worst)(x), axis=0)}

    return trial


def sweeps(config: Config) -> list[Sweep]:
    """Return the sweeps that `run` runs, so that the cost of `run` can be estimated."""
    key = jax.random.key(config.target_seed, impl="threefry2x32")
    for_target, for_data = jax.random.split(key)
    target = random_transformer(
        for_target, num_blocks=config.max_blocks, d=config.d, d_k=config.d_k
    )
    x = data.angular_velocity(for_data, config.test_sequences, config.length).x
    trial = make_trial(target, x, config.construction)
    return [Sweep("sources pruned", trial, grid={"width": config.widths}, padded=("width",))]


def run(config: Config, out: RunFolder) -> dict[str, Any]:
    """Run the sweep, fit a decay rate that all depths share, and draw the figure."""
    (sweep,) = sweeps(config)
    results = out.sweep(sweep)
    depths = range(1, config.max_blocks + 1)
    trials = measure.spread(results.rows, "num_blocks", depths)
    out.write_rows(trials)
    rows = sorted(
        measure.summarize(trials, ("num_blocks", "width")), key=lambda row: row["num_blocks"]
    )
    by_depth = {b: [row for row in rows if row["num_blocks"] == b] for b in depths}
    fit = one_rate(by_depth)
    out.figure(pictures.blocks(config.seeds, rows, fit, PAPER_RANGE), "blocks")
    return {
        "rows": rows,
        "fit": fit,
        "paper": {"range": PAPER_RANGE, "statement": "one rate serves all depths, gamma refitted"},
        "claims": compare(rows, fit),
    }


def one_rate(by_depth: dict[int, list[dict[str, Any]]]) -> dict[str, Any]:
    """Fit a decay rate for the shallowest transformer, and only gamma for deeper transformers.

    Only widths whose mean error is at least ten times the rounding error are used. The rounding
    error is estimated by the least median error over all widths, because a median does not depend
    on a few large errors of values that no subset sum reaches. Lines are fitted to logarithms,
    because the means span many decades. `residual` is the root mean square of the residuals of the
    logarithms. `own_delta` is the decay rate of a separate fit for one depth. A depth agrees if 0
    is in Student's 95 % interval of the difference between `own_delta` and the shared rate; this
    interval uses the standard errors of both rates. `one_rate_serves` is true if all depths agree.
    """
    depths: dict[str, Any] = {}
    shared: dict[str, float] = {}
    for depth, rows in by_depth.items():
        floor = min(row["median"] for row in rows)
        used = [row for row in rows if row["mean"] >= ABOVE_FLOOR * floor]
        n = [row["width"] for row in used]
        mean = [row["mean"] for row in used]
        if len(used) < 3:
            continue
        alone = curves.log_line(n, mean)
        shared = shared or alone
        together = curves.log_gamma_at(n, mean, shared["delta"])
        error = float(np.hypot(alone["delta_se"], shared["delta_se"]))
        _, limit = claims.interval(0.0, error, len(used) - 2)
        depths[str(depth)] = {
            "gamma": together["gamma"],
            "residual": together["residual"],
            "own_delta": alone["delta"],
            "own_delta_se": alone["delta_se"],
            "floor": floor,
            "widths": n,
            "agrees": bool(abs(alone["delta"] - shared["delta"]) <= limit),
        }
    if not depths:
        return {}
    first = next(iter(depths.values()))
    return {
        "gamma": first["gamma"],
        "delta": shared["delta"],
        "delta_se": shared["delta_se"],
        "blocks": depths,
        "one_rate_serves": all(fit["agrees"] for fit in depths.values()),
    }


def compare(rows: Sequence[dict[str, Any]], fit: dict[str, Any]) -> list[claims.Claim]:
    """Compare each depth's separate rate, and the order of the depths' errors, with the paper."""
    compared = [
        claims.statement(
            f"decay rate fitted on {depth} blocks alone",
            f"the rate of one block serves (here {fit['delta']:.3g})",
            alone["own_delta"],
            alone["agrees"],
            "within Student's 95 % interval of both standard errors",
            **_limits(alone),
        )
        for depth, alone in list(fit.get("blocks", {}).items())[1:]
    ]
    what = "widths and depths at which one more block has the larger mean error"
    return compared + claims.ordered(what, rows, "num_blocks", "width", grows=True)


def _limits(fit: dict[str, Any]) -> dict[str, float]:
    low, high = claims.interval(fit["own_delta"], fit["own_delta_se"], len(fit["widths"]) - 2)
    return {"low": low, "high": high}
