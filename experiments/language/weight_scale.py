"""Figure 8: validation loss of GPT-2's tickets against the scale of query and key weights."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from experiments import claims, measure
from experiments.folder import RunFolder
from experiments.language import cost, plots, text, training
from experiments.language.job import Run
from experiments.language.outcome import Outcome, summarize
from experiments.language.settings import PAPER_RECIPE, Settings, load_text

PAPER_SCALE = 64**0.25
PAPER: dict[str, Any] = {
    "best_scale": "near n_K^(1/4) = 2.8 in mini, small and medium",
    "scales": "1 to 5",
    "figure": 8,
}


@dataclasses.dataclass(frozen=True)
class Config(Settings):
    """Settings of the sweep over scales, in addition to the settings of model and training.

    Attributes:
      seeds: the number of runs per scale; the seed of a run (0, 1, ...) determines its weights,
        first scores and batches.
      models: names in `models.PRESETS`; all scales are trained for each model.
      scales: the factors by which query and key weights are multiplied.
      runs_at_once: the number of runs that one program trains; 0 for all runs of a model.
    """

    seeds: int = 8
    models: tuple[str, ...] = ("tiny",)
    scales: tuple[float, ...] = (1.0, 2.0, 2.83, 4.0, 6.0)
    runs_at_once: int = 0


PRESETS = {
    # 40 runs, eight per program: about half an hour of processor time, or 15 minutes on two cores.
    "quick": Config(runs_at_once=8),
    # 6 runs in one program: about two minutes on two cores.
    "tiny": Config(seeds=2, scales=(1.0, 2.83, 6.0), steps=200),
    "paper": Config(
        seeds=3,
        models=("mini", "small", "medium"),
        scales=(1.0, 1.5, 2.0, 2.5, 2.8284, 3.0, 3.5, 4.0, 5.0),
        runs_at_once=1,
        **PAPER_RECIPE,
    ),
}


def run(config: Config, out: RunFolder) -> dict[str, Any]:
    """Train every scale and seed, evaluate the controls, and plot the figure.

    At every scale, the runs of one seed have the same weights (before scaling), batches and first
    scores. In the summary, `paired` contains the difference of losses between each scale and scale
    1, over the seeds.
    """
    jobs = {model: config.job(model) for model in config.models}  # checked before text is read
    corpus = load_text(config)
    entropy = text.unigram_entropy(corpus.train, corpus.valid, corpus.vocab_size)
    rows: list[dict[str, Any]] = []
    log: list[dict[str, Any]] = []
    for model, job in jobs.items():
        outcomes = training.train_in_groups(
            model, job, _runs(config), config.runs_at_once, corpus, out
        )
        for outcome in outcomes:
            log += [{"model": model, **row} for row in outcome.log]
            rows += [_measurement(model, outcome, index) for index in range(len(outcome.runs))]
        out.write_rows(rows)
    summary = summarize(rows, ("model", "scale"))
    out.figure(plots.against_scale(summary, entropy), "weight_scale")
    out.figure(plots.curves(log, "qk_scale"), "curves")
    paired = [
        {"model": model}
        | measure.paired([row for row in rows if row["model"] == model], "scale", scale, 1.0)
        for model in config.models
        for scale in config.scales
        if 1.0 in config.scales and scale != 1.0
    ]
    fit = {
        model: _minimum([row for row in summary if row["model"] == model])
        for model in config.models
    }
    return {
        "rows": summary,
        "paired": paired,
        "fit": fit,
        "unigram_entropy": entropy,
        "paper": PAPER,
        "claims": compare(config.scales, fit, paired),
    }


def compare(
    scales: Sequence[float], fit: dict[str, dict[str, float]], paired: list[dict[str, Any]]
) -> list[claims.Claim]:
    """Compare the best scale, and the loss at the paper's scale, with the paper's statements."""
    nearest = min(scales, key=lambda scale: abs(scale - PAPER_SCALE))
    return [
        claims.statement(
            f"best of the scales {', '.join(f'{scale:g}' for scale in scales)}, {model}",
            PAPER["best_scale"],
            minimum["best_scale"],
            minimum["best_scale"] == nearest,
            "best at the scale nearest to 2.83",
        )
        for model, minimum in fit.items()
    ] + [
        claims.below_zero(
            f"loss at scale {nearest:g} less that at scale 1, {row['model']}",
            "scaling helps",
            row,
        )
        for row in paired
        if row["scale"] == nearest
    ]


def dry_run(config: Config, on: str | None = None) -> str:
    """Return the estimated cost of the sweep without starting it.

    Args:
      config: the settings.
      on: another machine, such as 'v5e:2x2'; None for this machine.
    """
    runs = _runs(config)
    lines = [f"weight-scale: {len(runs)} runs per model, {config.steps} steps each"]
    for model in config.models:
        job = config.job(model)
        if on is None:
            lines += cost.report(model, job, len(runs), config.keep)
        else:
            lines += cost.report_on(on, model, job, runs[: config.runs_at_once or None])
    return "\n".join(lines)


def _runs(config: Config) -> list[Run]:
    return [
        Run("ticket", seed, scale, config.keep, config.learning_rate)
        for scale in config.scales
        for seed in range(config.seeds)
    ]


def _measurement(model: str, outcome: Outcome, index: int) -> dict[str, Any]:
    """Return the measurements of one run, with `qk_scale` renamed to `scale`."""
    row = outcome.measurement(index)
    return {"model": model, "scale": row.pop("qk_scale"), **row}


def _minimum(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return the scale of lowest mean loss, and the excess loss at the least and largest scale."""
    best = min(rows, key=lambda row: row["mean"])
    return {
        "best_scale": best["scale"],
        "best_mean": best["mean"],
        "above_at_lowest_scale": rows[0]["mean"] - best["mean"],
        "above_at_highest_scale": rows[-1]["mean"] - best["mean"],
    }
