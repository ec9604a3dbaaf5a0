"""Figure 5: the error of a ticket against the length of its input."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import fits, measure, plots, registry
from experiments.folder import RunFolder
from experiments.theory import data, hidden_dim
from slth_jax import construction, initializers
from slth_jax.types import Hparams, Key

DESCRIPTION = "error against the length of the input (figure 5)"
FLOAT64 = True


@dataclasses.dataclass(frozen=True)
class Config:
    """What a run is repeated from."""

    seeds: int = 100
    widths: tuple[int, ...] = (20, 40)
    lengths: tuple[int, ...] = tuple(2**k for k in range(3, 14))
    test_sequences: int = 4  # of each length
    query_rows: int = 256  # tokens compared, spread evenly, the regression token first; 0 for all
    construction: str = "proof"
    target_seed: int = 0
    epochs: int = 25


PRESETS = {
    "quick": Config(seeds=20, lengths=tuple(2**k for k in range(3, 12))),
    "paper": Config(),
}


def check(config: Config) -> None:
    """Refuse options that no trial could run with."""
    registry.check_theory(config, least_width=2)


def run(config: Config, out: RunFolder) -> dict[str, Any]:
    """Prune each source, apply it at all lengths, regress on log T, draw the figure."""
    target = hidden_dim.make_target(config)

    inputs = [
        hidden_dim.test_inputs(target, config.test_sequences, length, config.target_seed)
        for length in config.lengths
    ]

    def trial(key: Key, hparams: Hparams):
        width = hparams["width"]
        source = initializers.theory_attention(
            key, num_heads=1, d_in=2, d_out=1, n_k=width, n_v=width, padded=hparams["width_max"]
        )
        masks = construction.prune_attention(
            source, target.params, construction=config.construction, widths=(width, width)
        )
        errors = [
            measure.attention_error(
                source,
                masks,
                target.params,
                x,
                key_width=width,
                queries=query_rows(x.shape[1], config.query_rows),
            )
            for x in inputs
        ]
        return {"error": jnp.stack(errors)}

    results = out.sweep(
        trial,
        "sources pruned",
        seeds=config.seeds,
        grid={"width": config.widths},
        padded=("width",),
        buckets="largest",
        # A device works on few sources at a time, so that memory stays bounded at long inputs.
        batch=4,
        chunk=16,
        config=dataclasses.asdict(config),
    )
    trials = measure.spread(results.rows, "length", config.lengths)
    out.write_rows(trials)
    rows = measure.summarize(trials, ("width", "length"))
    by_width = {w: [row for row in rows if row["width"] == w] for w in config.widths}
    slopes = {
        str(width): fits.slope(np.log([row["length"] for row in part]), [r["mean"] for r in part])
        for width, part in by_width.items()
        if len(part) >= 3
    }
    _draw(config, out, by_width)
    return {
        "rows": rows,
        "fit": slopes,
        "grows_with_length": {width: fit["low"] > 0 for width, fit in slopes.items()},
        "paper": {"statement": "does not diverge from T = 2^3 to 2^13; lower for the larger width"},
        "target": {
            "test_loss": float(target.test_loss),
            "answer_variance": data.VELOCITY_VARIANCE,
        },
    }


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
