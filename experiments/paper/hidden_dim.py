"""Figure 4: the error of a ticket against the hidden widths of its random source."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import claims, curves, measure, options
from experiments.folder import RunFolder, Sweep
from experiments.paper import data, drawn, errors, pictures
from experiments.paper.targets import AngularTarget, Training, train_angular
from slth_jax import attention, construction, initializers
from slth_jax.types import Array, Hparams, Key, Projections

FLOAT64 = True  # errors are measured in float64; weights and subset sums stay float32

PAPER_FIT = {"gamma": 0.8, "delta": 0.06}
TARGETS = ("trained", "drawn")


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of a run.

    Attributes:
      seeds: the number of random sources per setting, which have the seeds 0, 1, ...
      widths: the hidden widths n_K = n_V of the source.
      sources: distributions of the source's weights, given as names in `initializers.ATTENTION`.
      target: kinds of targets: trained (as in the paper) and drawn (at random from the theory's
        distribution, not trained).
      targets: the number of drawn targets; every source is pruned for each of them.
      construction: the rule that assigns hidden units to input coordinates.
      length: tokens per test sequence, without the regression token.
      test_sequences: the number of test sequences, over which errors are averaged.
      target_seed: the seed of the targets and of the test sequences.
      epochs: the number of epochs for which the trained target is trained.
    """

    seeds: int = 100
    widths: tuple[int, ...] = tuple(range(4, 101, 8))
    sources: tuple[str, ...] = ("theory",)
    target: tuple[str, ...] = TARGETS
    targets: int = 24
    construction: str = "proof"
    length: int = 4
    test_sequences: int = 100
    target_seed: int = 0
    epochs: int = 25

    def __post_init__(self):
        counts = ("length", "test_sequences", "epochs", "targets")
        options.check(
            self,
            least={"widths": 2, "target_seed": 0} | dict.fromkeys(counts, 1),
            words={
                "sources": initializers.ATTENTION,
                "target": TARGETS,
                "construction": construction.CONSTRUCTIONS,
            },
        )


class Targets(NamedTuple):
    """The g target layers, stacked on the first axis; if a target is trained, it comes first."""

    params: Projections  # [g, ...]
    tokens: Array  # [g, 2], regression tokens
    losses: Array  # [g], mean squared errors on test data; 0 for drawn targets
    kinds: tuple[tuple[str, int], ...]  # per target: 'trained' or 'drawn', and a number


PRESETS = {
    "quick": Config(seeds=20),
    "paper": Config(),
    "sources": Config(sources=("theory", "xavier", "xavier_scaled"), target=("trained",)),
}


def make_target(config: Any) -> AngularTarget:
    """Train the target of figures 4 and 5 with the settings in `config`."""
    key = jax.random.key(config.target_seed, impl="threefry2x32")
    return train_angular(key, Training(epochs=config.epochs))


def make_targets(config: Any) -> Targets:
    """Train and draw the targets of figures 4 and 5 with the settings in `config`."""
    parts: list[AngularTarget] = []
    if "trained" in config.target:
        parts.append(jax.tree.map(lambda w: w[None], make_target(config)))
    if "drawn" in config.target:
        params = drawn.draw(drawn.key_of(config.target_seed), config.targets)
        zeros = jnp.zeros((config.targets, 2), jnp.float32)
        parts.append(AngularTarget(params, zeros, zeros[:, 0]))
    params, tokens, losses = jax.tree.map(lambda *w: jnp.concatenate(w), *parts)
    kinds = [("trained", 0)] * ("trained" in config.target)
    kinds += [("drawn", index) for index in range(config.targets) if "drawn" in config.target]
    return Targets(params, tokens, losses, tuple(kinds))


def test_sequences(count: int, length: int, seed: int) -> Array:
    """Return test sequences without the regression token, `[count, length, 2]`."""
    key = jax.random.key(2**31 + seed, impl="threefry2x32")
    return data.angular_velocity(key, count, length).x


def draw_source(key: Key, hparams: Hparams) -> Projections:
    """Draw the random source of one trial."""
    n, padded = hparams["width"], hparams["width_max"]
    initializer = initializers.ATTENTION[hparams["source"]]
    return initializer(key, num_heads=1, d_in=2, d_out=1, n_k=n, n_v=n, padded=padded)


def make_trial(targets: Targets, sequences: Array, rule: str):
    """Return the trial function: draw a source, then compute a ticket and its error per target.

    The metrics of a trial are arrays `[g]`, with an entry for each target. The trial also returns
    the masks of the ticket for the first target.
    """

    def trial(key: Key, hparams: Hparams):
        source = draw_source(key, hparams)

        def of_target(target: Projections, token: Array):
            masks, report = construction.solve_attention(source, target, construction=rule)
            ticket = construction.apply_masks(source, masks)
            x = data.with_token(token, sequences)
            metrics = {
                "error": jnp.mean(attention.error(ticket, target, x)),
                "out_of_reach": report.qk.out_of_reach + report.vo.out_of_reach,
                "max_entry_error": jnp.maximum(report.qk.max_error, report.vo.max_error),
            }
            return metrics, masks

        metrics, masks = jax.vmap(of_target)(targets.params, targets.tokens)
        return metrics, jax.tree.map(lambda mask: mask[0], masks)

    return trial


def _sweep(config: Config, targets: Targets) -> Sweep:
    sequences = test_sequences(config.test_sequences, config.length, config.target_seed)
    return Sweep(
        "sources pruned for all targets",
        make_trial(targets, sequences, config.construction),
        grid={"source": config.sources, "width": config.widths},
        padded=("width",),
        # Every source is pruned for all targets at once, so few sources per batch limit the memory.
        batch=max(1, 64 // len(targets.kinds)),
        chunk=128,
    )


def sweeps(config: Config) -> list[Sweep]:
    """Return the sweeps that `run` runs, so that the cost of `run` can be estimated."""
    return [_sweep(config, make_targets(config))]


def run(config: Config, out: RunFolder) -> dict[str, Any]:
    """Run the sweep, fit exponentials to the errors, bound tickets, and draw the figures."""
    targets = make_targets(config)
    results = out.sweep(_sweep(config, targets))
    trials = of_each_target(results.rows, targets.kinds)
    out.write_rows(trials)
    rows = measure.summarize(
        trials, ("target", "source", "width"), out_of_reach=("out_of_reach", sum)
    )
    series: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for kind in config.target:
        for source in config.sources:
            part = [row for row in rows if (row["target"], row["source"]) == (kind, source)]
            if kind == "drawn":
                of_source = [t for t in trials if (t["target"], t["source"]) == (kind, source)]
                part = drawn.with_band(part, of_source, "width")
            series[kind, source] = part
    summary: dict[str, Any] = {"paper": PAPER_FIT}
    summary["rows"] = [row for part in series.values() for row in part]
    summary |= _fits(config, series, trials)
    main = config.sources[0]
    if "trained" in config.target:
        of_main = [t for t in trials if (t["target"], t["source"]) == ("trained", main)]
        summary["bend"] = explain_bend(of_main)
        target = jax.tree.map(lambda w: w[0], targets.params)
        x = data.with_token(
            targets.tokens[0],
            test_sequences(config.test_sequences, config.length, config.target_seed),
        )
        summary["guarantees"] = errors.first_of_each_width(
            out, results, target, x, sources=config.sources
        )
        summary["target"] = describe_target(target, float(targets.losses[0]))
    summary["claims"] = compare(summary, main)
    out.figure(pictures.hidden_dim(config, series, summary), "hidden_dim")
    if "bend" in summary:
        out.figure(pictures.bend(summary["bend"]), "bend")
    return summary


def of_each_target(
    rows: Sequence[dict[str, Any]], kinds: Sequence[tuple[str, int]]
) -> list[dict[str, Any]]:
    """Split rows whose metrics are arrays `[g]`: return a row for each trial and target."""
    return [
        {"target": kind, "target_index": index}
        | {k: v[place] if isinstance(v, list | np.ndarray) else v for k, v in row.items()}
        for place, (kind, index) in enumerate(kinds)
        for row in rows
    ]


def _fits(config: Config, series: dict, trials: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Fit the errors for the trained target, per source distribution, and for drawn targets."""
    if len(config.widths) < 3:
        return {}
    main = config.sources[0]
    fits: dict[str, Any] = {}
    if "trained" in config.target:
        of_source = {
            source: curves.exponential(
                config.widths,
                [row["mean"] for row in series["trained", source]],
                floor=above_rounding(series["trained", source]),
            )
            for source in config.sources
        }
        fits |= {"fit": of_source[main], "fits": of_source}
    if "drawn" in config.target:
        of_main = [t for t in trials if (t["target"], t["source"]) == ("drawn", main)]
        fits["fit_drawn"] = drawn.fit(of_main, floor=above_rounding(series["drawn", main]))
    return fits


def above_rounding(rows: Sequence[dict[str, Any]]) -> float:
    """Return ten times the rounding error, estimated by the least median error over all widths."""
    return 10 * min(row["median"] for row in rows)


def describe_target(target: Projections, loss: float) -> dict[str, float]:
    """Return the trained target's test loss, the share of variance it explains, and its norms."""
    qk_norm, vo_norm = errors.merged_norms(target)
    return {
        "test_loss": loss,
        "answer_variance": data.VELOCITY_VARIANCE,
        "explained_variance": 1 - loss / data.VELOCITY_VARIANCE,
        "w_qk_norm": qk_norm,
        "w_vo_norm": vo_norm,
    }


def explain_bend(trials: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return, for each width, mean errors of sources that do and do not reach all target values.

    A source does not reach a target value if the value is larger than the sum of all samples of the
    same sign. `beyond` is the share of sources that do not reach all target values. The means
    satisfy ``mean = beyond * mean_beyond + (1 - beyond) * mean_within``.
    """
    split = []
    for width in sorted({row["width"] for row in trials}):
        rows = [row for row in trials if row["width"] == width]
        error = np.array([row["error"] for row in rows])
        beyond = np.array([row["out_of_reach"] > 0 for row in rows])
        split.append(
            {
                "width": width,
                "mean": float(error.mean()),
                "beyond": float(beyond.mean()),
                "mean_beyond": float(error[beyond].mean()) if beyond.any() else None,
                "mean_within": float(error[~beyond].mean()) if not beyond.all() else None,
            }
        )
    return split


def compare(summary: dict[str, Any], source: str) -> list[claims.Claim]:
    """Compare the paper with the fits, the order of the widths, and the largest width's error."""
    compared = []
    if "fit_drawn" in summary:
        for name in ("gamma", "delta"):
            single = summary["fit_drawn"]["single"][name]
            compared.append(
                claims.inside(
                    f"{name} of gamma exp(-delta n), drawn targets: the fit of all of them, and "
                    "the range of single targets",
                    PAPER_FIT[name],
                    summary["fit_drawn"][name],
                    single["10 %"],
                    single["90 %"],
                    "inside the 10 to 90 % range of single targets",
                )
            )
    if summary.get("fit"):
        compared += [
            claims.number(
                f"{name} of gamma exp(-delta n), trained target",
                PAPER_FIT[name],
                summary["fit"][name],
                summary["fit"][f"{name}_se"],
                summary["fit"]["free"],
            )
            for name in ("gamma", "delta")
        ]
    for kind in dict.fromkeys(row["target"] for row in summary["rows"]):
        rows = [r for r in summary["rows"] if (r["target"], r["source"]) == (kind, source)]
        falling = [row for row in rows if row["mean"] > above_rounding(rows)]
        if len(falling) < 2:  # widths so small that rounding does not limit any error
            falling = rows
        what = (
            "neighbouring widths of which the larger has the smaller mean error, above the "
            f"rounding error, {kind}"
        )
        compared += claims.ordered(what, falling, "width", "source", grows=False)
        widest = max(rows, key=lambda row: row["width"])
        compared.append(
            claims.number(
                f"mean error at width {widest['width']}, {kind}; the paper's by its fit",
                PAPER_FIT["gamma"] * math.exp(-PAPER_FIT["delta"] * widest["width"]),
                widest["mean"],
                widest.get("mean_se", widest["std"] / math.sqrt(widest["count"])),
                widest.get("mean_free", widest["count"] - 1),
            )
        )
    return compared
