"""Figure 5: the error of a ticket against the length of its input."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import claims, curves, measure, options
from experiments.folder import RunFolder, Sweep
from experiments.paper import data, drawn, hidden_dim, pictures
from experiments.paper.hidden_dim import TARGETS, Targets
from slth_jax import attention, construction
from slth_jax.types import Array, Hparams, Key, Projections

FLOAT64 = True


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of a run.

    Attributes:
      seeds: the number of random sources per width, which have the seeds 0, 1, ...
      widths: the hidden widths n_K = n_V of the source.
      lengths: tokens per test sequence, without the regression token.
      target: kinds of targets: trained (as the paper describes) and drawn (from the theory's
        distribution, not trained).
      targets: the number of drawn targets; every source is pruned for each of them.
      test_sequences: the number of test sequences of each length, over which errors are averaged.
      query_rows: the number of tokens at which outputs are compared; these tokens are evenly spaced
        and begin with the regression token. 0 for all tokens.
      construction: the rule that assigns hidden units to input coordinates.
      target_seed: the seed of the targets and of the test sequences.
      epochs: the number of epochs for which the trained target is trained.
    """

    seeds: int = 100
    widths: tuple[int, ...] = (20, 40)
    lengths: tuple[int, ...] = tuple(2**k for k in range(3, 14))
    target: tuple[str, ...] = TARGETS
    targets: int = 4
    test_sequences: int = 4
    query_rows: int = 256
    construction: str = "proof"
    target_seed: int = 0
    epochs: int = 25

    def __post_init__(self):
        counts = ("lengths", "test_sequences", "epochs", "targets")
        options.check(
            self,
            least={"widths": 2, "query_rows": 0, "target_seed": 0} | dict.fromkeys(counts, 1),
            words={"construction": construction.CONSTRUCTIONS, "target": TARGETS},
        )


PRESETS = {
    "quick": Config(seeds=20, lengths=tuple(2**k for k in range(3, 12)), targets=3),
    "paper": Config(),
}


def make_trial(config: Config, targets: Targets, inputs: Sequence[Array]):
    """Return the trial function: prune a source for each target, and measure errors per length.

    The metric `error` has the shape `[g, lengths]`, where g is the number of targets.
    """

    def trial(key: Key, hparams: Hparams):
        source = hidden_dim.draw_source(key, {**hparams, "source": "theory"})

        def of_target(target_and_token: tuple[Projections, Array]) -> Array:
            target, token = target_and_token
            masks = construction.prune_attention(source, target, construction=config.construction)
            ticket = construction.apply_masks(source, masks)
            of_lengths = []
            for sequences in inputs:
                x = data.with_token(token, sequences)
                queries = query_rows(x.shape[1], config.query_rows)
                error = attention.error(ticket, target, x, queries=queries)
                of_lengths.append(jnp.mean(error))
            return jnp.stack(of_lengths)

        return {"error": jax.lax.map(of_target, (targets.params, targets.tokens))}

    return trial


def _sweep(config: Config, targets: Targets) -> Sweep:
    inputs = [
        hidden_dim.test_sequences(config.test_sequences, length, config.target_seed)
        for length in config.lengths
    ]
    return Sweep(
        "sources pruned for all targets",
        make_trial(config, targets, inputs),
        grid={"width": config.widths},
        padded=("width",),
        # Few sources per batch limit the memory for long inputs.
        batch=4,
        chunk=16,
    )


def sweeps(config: Config) -> list[Sweep]:
    """Return the sweeps that `run` runs, so that the cost of `run` can be estimated."""
    return [_sweep(config, hidden_dim.make_targets(config))]


def run(config: Config, out: RunFolder) -> dict[str, Any]:
    """Measure errors at all lengths T, fit their slopes on log T, and draw the figure."""
    targets = hidden_dim.make_targets(config)
    results = out.sweep(_sweep(config, targets))
    of_targets = hidden_dim.of_each_target(results.rows, targets.kinds)
    trials = measure.spread(of_targets, "length", config.lengths)
    out.write_rows(trials)
    rows = measure.summarize(trials, ("target", "width", "length"))
    series: dict[tuple[str, int], list[dict[str, Any]]] = {}
    slopes: dict[str, dict[str, float]] = {}
    for kind in config.target:
        for width in config.widths:
            part = [row for row in rows if (row["target"], row["width"]) == (kind, width)]
            if kind == "drawn":
                of_width = [t for t in trials if (t["target"], t["width"]) == (kind, width)]
                part = drawn.with_band(part, of_width, "length")
            series[kind, width] = part
            if len(part) >= 3:
                log_length = np.log([row["length"] for row in part])
                slope = curves.slope(log_length, [row["mean"] for row in part])
                slopes[f"{kind}, width {width}"] = slope
    out.figure(pictures.input_length(config, series), "input_length")
    summary: dict[str, Any] = {
        "rows": [row for part in series.values() for row in part],
        "fit": slopes,
        "grows_with_length": {name: fit["low"] > 0 for name, fit in slopes.items()},
        "paper": {"statement": "does not diverge from T = 2^3 to 2^13; lower for the larger width"},
        "claims": compare(rows, slopes),
    }
    if "trained" in config.target:
        target = jax.tree.map(lambda w: w[0], targets.params)
        summary["target"] = hidden_dim.describe_target(target, float(targets.losses[0]))
    return summary


def compare(
    rows: Sequence[dict[str, Any]], slopes: Mapping[str, dict[str, float]]
) -> list[claims.Claim]:
    """Compare the slopes on log T, and the order of the widths' errors, with the paper."""
    compared = [
        claims.statement(
            f"slope of the error on log T, {name}",
            "the error does not diverge",
            fit["slope"],
            fit["low"] <= 0,
            "the 95 % interval is not above 0",
            low=fit["low"],
            high=fit["high"],
        )
        for name, fit in slopes.items()
    ]
    for kind in dict.fromkeys(row["target"] for row in rows):
        compared += claims.ordered(
            f"lengths at which the larger width has the smaller mean error, {kind}",
            [row for row in rows if row["target"] == kind],
            "width",
            "length",
            grows=False,
        )
    return compared


def query_rows(tokens: int, count: int) -> jax.Array | None:
    """Return `count` evenly spaced token indices, beginning with 0.

    Return None, which stands for all tokens, if `count` is 0 or at least `tokens`.
    """
    if count == 0 or tokens <= count:
        return None
    return jnp.asarray(np.unique(np.linspace(0, tokens - 1, count).round().astype(np.int32)))
