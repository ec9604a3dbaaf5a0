"""Figure 5: the error of a ticket against the length of its input."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import claims, curves, measure, options, plots
from experiments.folder import RunFolder, Sweep
from experiments.paper import data, errors, hidden_dim
from experiments.paper.targets import AngularTarget
from slth_jax import construction, initializers
from slth_jax.types import Array, Hparams, Key

FLOAT64 = True


@dataclasses.dataclass(frozen=True)
class Config:
    """What a run is repeated from.

    Attributes:
      seeds: random sources a width; seed 0, 1, ... draws the weights.
      widths: hidden widths n_K = n_V of the source.
      lengths: tokens of the test sequences, the regression token not counted.
      test_sequences: how many sequences of each length the error is averaged over.
      query_rows: tokens compared, spread evenly, the regression token first; 0 for all.
      construction: the rule by which hidden units are dealt.
      target_seed: seed of the target's training and of the test sequences.
      epochs: of the target's training.
    """

    seeds: int = 100
    widths: tuple[int, ...] = (20, 40)
    lengths: tuple[int, ...] = tuple(2**k for k in range(3, 14))
    test_sequences: int = 4
    query_rows: int = 256
    construction: str = "proof"
    target_seed: int = 0
    epochs: int = 25

    def __post_init__(self):
        counts = ("lengths", "test_sequences", "epochs")
        options.check(
            self,
            least={"widths": 2, "query_rows": 0, "target_seed": 0} | dict.fromkeys(counts, 1),
            words={"construction": construction.CONSTRUCTIONS},
        )


PRESETS = {
    "quick": Config(seeds=20, lengths=tuple(2**k for k in range(3, 12))),
    "paper": Config(),
}


def _task(config: Config) -> tuple[AngularTarget, list[Array]]:
    """Return the trained target and the test sequences of each length."""
    target = hidden_dim.make_target(config)
    return target, [
        hidden_dim.test_inputs(target, config.test_sequences, length, config.target_seed)
        for length in config.lengths
    ]


def make_trial(config: Config, target: AngularTarget, inputs: Sequence[Array]):
    """Return the trial: prune a source once, measure its error on the inputs of every length."""

    def trial(key: Key, hparams: Hparams):
        width = hparams["width"]
        source = initializers.theory_attention(
            key, num_heads=1, d_in=2, d_out=1, n_k=width, n_v=width, padded=hparams["width_max"]
        )
        masks = construction.prune_attention(
            source, target.params, construction=config.construction
        )
        of_length = [
            errors.attention_error(
                source,
                masks,
                target.params,
                x,
                queries=query_rows(x.shape[1], config.query_rows),
            )
            for x in inputs
        ]
        return {"error": jnp.stack(of_length)}

    return trial


def _sweep(config: Config, target: AngularTarget, inputs: Sequence[Array]) -> Sweep:
    return Sweep(
        "sources pruned",
        make_trial(config, target, inputs),
        grid={"width": config.widths},
        padded=("width",),
        # A device works on few sources at a time, so that memory stays bounded at long inputs.
        batch=4,
        chunk=16,
    )


def sweeps(config: Config) -> list[Sweep]:
    """Return what `run` computes, to estimate its cost."""
    return [_sweep(config, *_task(config))]


def run(config: Config, out: RunFolder) -> dict[str, Any]:
    """Prune each source, apply it at all lengths, regress on log T, draw the figure."""
    target, inputs = _task(config)
    results = out.sweep(_sweep(config, target, inputs))
    trials = measure.spread(results.rows, "length", config.lengths)
    out.write_rows(trials)
    rows = measure.summarize(trials, ("width", "length"))
    by_width = {w: [row for row in rows if row["width"] == w] for w in config.widths}
    slopes = {
        str(width): curves.slope(np.log([row["length"] for row in part]), [r["mean"] for r in part])
        for width, part in by_width.items()
        if len(part) >= 3
    }
    _draw(config, out, by_width)
    return {
        "rows": rows,
        "fit": slopes,
        "grows_with_length": {width: fit["low"] > 0 for width, fit in slopes.items()},
        "paper": {"statement": "does not diverge from T = 2^3 to 2^13; lower for the larger width"},
        "claims": compare(rows, slopes),
        "target": {
            "test_loss": float(target.test_loss),
            "answer_variance": data.VELOCITY_VARIANCE,
        },
    }


def compare(
    rows: Sequence[dict[str, Any]], slopes: dict[str, dict[str, float]]
) -> list[claims.Claim]:
    """Set the slopes on log T, and which width has the lower error, beside the paper's words."""
    told = [
        claims.statement(
            f"slope of the error on log T at width {width}",
            "the error does not diverge",
            fit["slope"],
            fit["low"] <= 0,
            low=fit["low"],
            high=fit["high"],
        )
        for width, fit in slopes.items()
    ]
    higher, pairs = claims.in_order(rows, "width", "length")
    if pairs:
        told.append(
            claims.statement(
                "lengths at which the larger width has the lower mean error",
                "all",
                f"{pairs - higher} of {pairs}",
                higher == 0,
            )
        )
    return told


def query_rows(tokens: int, count: int) -> jax.Array | None:
    """Return `count` of the token indices, spread evenly from the first; None for all."""
    if count == 0 or tokens <= count:
        return None
    return jnp.asarray(np.unique(np.linspace(0, tokens - 1, count).round().astype(np.int32)))


def _draw(config: Config, out: RunFolder, by_width: dict) -> None:
    figure, axes = plots.figure()
    for index, (width, rows) in enumerate(by_width.items()):
        label = f"$n_K = n_V = {width}$ ({config.seeds} sources)"
        plots.error_curve(axes, [row["length"] for row in rows], rows, label, index)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("length of the input $T$")
    axes.set_ylabel("error of the ticket, mean and sd")
    axes.set_title("Tickets in random attention, applied to inputs of any length")
    axes.legend(frameon=False, fontsize=8)
    out.figure(figure, "input_length")
