"""Figure 4: the error of a ticket against the hidden widths of its random source."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import claims, curves, measure, options, plots
from experiments.folder import RunFolder, Sweep
from experiments.paper import data, errors
from experiments.paper.targets import AngularTarget, Training, train_angular
from slth_jax import construction, initializers
from slth_jax.types import Array, Hparams, Key

FLOAT64 = True  # errors are measured in float64; weights and subset sums stay float32

PAPER_FIT = {"gamma": 0.8, "delta": 0.06}


@dataclasses.dataclass(frozen=True)
class Config:
    """What a run is repeated from.

    Attributes:
      seeds: random sources a setting; seed 0, 1, ... draws the weights.
      widths: hidden widths n_K = n_V of the source.
      sources: distributions of the source weights, names of `initializers.ATTENTION`.
      construction: the rule by which hidden units are dealt.
      length: tokens of a test sequence, the regression token not counted.
      test_sequences: how many sequences the error is averaged over.
      target_seed: seed of the target's training and of the test sequences.
      epochs: of the target's training.
    """

    seeds: int = 100
    widths: tuple[int, ...] = tuple(range(4, 101, 8))
    sources: tuple[str, ...] = ("theory",)
    construction: str = "proof"
    length: int = 4
    test_sequences: int = 100
    target_seed: int = 0
    epochs: int = 25

    def __post_init__(self):
        counts = ("length", "test_sequences", "epochs")
        options.check(
            self,
            least={"widths": 2, "target_seed": 0} | dict.fromkeys(counts, 1),
            words={
                "sources": initializers.ATTENTION,
                "construction": construction.CONSTRUCTIONS,
            },
        )


PRESETS = {
    "quick": Config(seeds=20),
    "paper": Config(),
    "sources": Config(sources=("theory", "xavier", "xavier_scaled")),
}


def make_target(config: Any) -> AngularTarget:
    """Train the target of figures 4 and 5 as `config` says."""
    key = jax.random.key(config.target_seed, impl="threefry2x32")
    return train_angular(key, Training(epochs=config.epochs))


def test_inputs(target: AngularTarget, count: int, length: int, seed: int) -> Array:
    """Return test sequences behind the target's regression token, `[count, length + 1, 2]`."""
    key = jax.random.key(2**31 + seed, impl="threefry2x32")
    return data.with_token(target.token, data.angular_velocity(key, count, length).x)


def make_trial(target: AngularTarget, x: Array, how: str):
    """Return the trial: draw a source, find its ticket, measure the error on `x`."""

    def trial(key: Key, hparams: Hparams):
        width = hparams["width"]
        source = initializers.ATTENTION[hparams["source"]](
            key, num_heads=1, d_in=2, d_out=1, n_k=width, n_v=width, padded=hparams["width_max"]
        )
        masks, report = construction.solve_attention(source, target.params, construction=how)
        error = errors.attention_error(source, masks, target.params, x)
        metrics = {
            "error": error,
            "out_of_reach": report.qk.out_of_reach + report.vo.out_of_reach,
            "max_entry_error": jnp.maximum(report.qk.max_error, report.vo.max_error),
        }
        return metrics, masks

    return trial


def _task(config: Config) -> tuple[AngularTarget, Array]:
    """Return the trained target and the test sequences."""
    target = make_target(config)
    return target, test_inputs(target, config.test_sequences, config.length, config.target_seed)


def _sweep(config: Config, target: AngularTarget, x: Array) -> Sweep:
    return Sweep(
        "sources pruned",
        make_trial(target, x, config.construction),
        grid={"source": config.sources, "width": config.widths},
        padded=("width",),
    )


def sweeps(config: Config) -> list[Sweep]:
    """Return what `run` computes, to estimate its cost."""
    return [_sweep(config, *_task(config))]


def run(config: Config, out: RunFolder) -> dict[str, Any]:
    """Run the sweep, fit the exponential, draw the figure."""
    target, x = _task(config)
    results = out.sweep(_sweep(config, target, x))
    out.write_rows(results.rows)
    rows = measure.summarize(results.rows, ("source", "width"), out_of_reach=("out_of_reach", sum))
    bend = explain_bend([r for r in results.rows if r["source"] == config.sources[0]])
    by_source = {
        source: [row for row in rows if row["source"] == source] for source in config.sources
    }
    fitted = {
        source: curves.exponential([row["width"] for row in part], [row["mean"] for row in part])
        for source, part in by_source.items()
        if len(part) >= 3
    }
    guarantees = errors.first_of_each_width(out, results, target.params, x, sources=config.sources)
    _draw(config, out, by_source, fitted, guarantees)
    _draw_bend(out, bend)
    qk_norm, vo_norm = errors.merged_norms(target.params)
    return {
        "rows": rows,
        "fit": fitted.get(config.sources[0]),
        "fits": fitted,
        "paper": PAPER_FIT,
        "claims": compare(by_source[config.sources[0]], fitted.get(config.sources[0])),
        "bend": bend,
        "guarantees": guarantees,
        "target": {
            "test_loss": float(target.test_loss),
            "answer_variance": data.VELOCITY_VARIANCE,
            "w_qk_norm": qk_norm,
            "w_vo_norm": vo_norm,
        },
    }


def explain_bend(trials: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Split each width's mean error in two: sources with a value beyond reach, and the others.

    `mean = beyond * mean_beyond + (1 - beyond) * mean_within`; `beyond` is the share of sources
    that cannot reach some value, because it lies beyond the sum of all samples of its sign.
    """
    told = []
    for width in sorted({row["width"] for row in trials}):
        here = [row for row in trials if row["width"] == width]
        error = np.array([row["error"] for row in here])
        far = np.array([row["out_of_reach"] > 0 for row in here])
        told.append(
            {
                "width": width,
                "mean": float(error.mean()),
                "beyond": float(far.mean()),
                "mean_beyond": float(error[far].mean()) if far.any() else None,
                "mean_within": float(error[~far].mean()) if not far.all() else None,
            }
        )
    return told


def _draw_bend(out: RunFolder, bend: Sequence[dict[str, Any]]) -> None:
    figure, (left, right) = plots.two(9.6, 4.0)
    for name, label, color in (
        ("mean", "all sources", plots.PAPER),
        ("mean_beyond", "with a value beyond reach", plots.COLORS[1]),
        ("mean_within", "all values within reach", plots.COLORS[0]),
    ):
        known = [row for row in bend if row[name]]
        left.plot(
            [row["width"] for row in known],
            [row[name] for row in known],
            "o-",
            markersize=4,
            color=color,
            label=label,
        )
    left.set_yscale("log")
    left.set_xlabel("source width $n_K = n_V$")
    left.set_ylabel("mean error of the ticket")
    left.legend(frameon=False, fontsize=8)
    right.plot([row["width"] for row in bend], [row["beyond"] for row in bend], "o-", markersize=4)
    right.set_xlabel("source width $n_K = n_V$")
    right.set_ylabel("share of sources with a value beyond reach")
    out.figure(figure, "bend")


def compare(rows: Sequence[dict[str, Any]], fit: dict[str, float] | None) -> list[claims.Claim]:
    """Set the fit of one source's rows, and the error at its largest width, beside the paper's."""
    if fit is None:
        return []
    widest = max(rows, key=lambda row: row["width"])
    width = widest["width"]
    half = claims.STANDARD_ERRORS * fit["log_delta_se"]
    return [
        claims.statement(
            "rate of a straight line through the logarithms",
            "the error decays exponentially",
            fit["log_delta"],
            fit["log_delta"] - half > 0,
            low=fit["log_delta"] - half,
            high=fit["log_delta"] + half,
        ),
        *(
            claims.number(
                f"{name} of gamma exp(-delta n), least squares on the means",
                PAPER_FIT[name],
                fit[name],
                fit[f"{name}_se"],
            )
            for name in ("gamma", "delta")
        ),
        claims.number(
            f"mean error at width {width}, the paper's by its fit",
            float(plots.exponential(**PAPER_FIT)(np.array(width))),
            widest["mean"],
            widest["std"] / math.sqrt(widest["count"]),
        ),
    ]


def _draw(
    config: Config, out: RunFolder, by_source: dict, fitted: dict, guarantees: list[dict]
) -> None:
    figure, axes = plots.figure()
    for index, (source, rows) in enumerate(by_source.items()):
        label = f"{source.replace('_', ', ')} source ({config.seeds} each)"
        plots.error_curve(axes, [row["width"] for row in rows], rows, label, index)
    if fitted:
        gamma, delta = (next(iter(fitted.values()))[name] for name in ("gamma", "delta"))
        plots.curve(
            axes,
            config.widths,
            plots.exponential(gamma, delta),
            f"our fit {gamma:.2g} exp(-{delta:.2g} n)",
            color=plots.COLORS[0],
        )
    plots.curve(
        axes,
        config.widths,
        plots.exponential(**PAPER_FIT),
        f"paper's fit {PAPER_FIT['gamma']} exp(-{PAPER_FIT['delta']} n)",
        style=":",
    )
    told = [row for row in guarantees if row["source"] == config.sources[0]]
    axes.plot(
        [row["width"] for row in told],
        [row["bound"] for row in told],
        "v",
        color=plots.PAPER,
        markersize=4,
        label="guaranteed for the ticket of seed 0",
    )
    axes.set_yscale("log")
    axes.set_xlabel("source width $n_K = n_V$")
    axes.set_ylabel("error of the ticket, mean and sd")
    axes.set_title(f"Tickets in random attention (T = {config.length})")
    axes.legend(frameon=False, fontsize=8)
    out.figure(figure, "hidden_dim")
