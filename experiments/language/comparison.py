"""Figure 7: compare the losses of trained GPT-2s, tickets, and tickets with scaled q and k."""

import dataclasses
import itertools
from typing import Any

from experiments import claims, measure
from experiments.folder import RunFolder
from experiments.language import cost, plots, stored, text, training
from experiments.language.job import Job, Run
from experiments.language.model import Model
from experiments.language.outcome import summarize
from experiments.language.settings import PAPER_RECIPE, Settings, load_text
from slth_jax import checks, models

PAPER = {
    "figure": 7,
    "claim": "scaled tickets are better than tickets at every size, and close to trained models",
    "keep": 0.3,
    "seeds": 3,
}
METHODS = tuple(plots.METHODS)
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Config(Settings):
    """Settings of the comparison, in addition to the settings of model and training.

    Attributes:
      seeds: the number of runs per model and method.
      models: names in `models.PRESETS`.
      widths: for each entry of `models`, the factor by which the model's width is multiplied; the
        width of heads is unchanged.
      methods: any of 'dense' (all weights are trained), 'ticket', and 'scaled' (a ticket whose
        query and key weights are multiplied by ``n_K^(1/4)``).
      rates: the peak learning rates that are tried with all seeds, for each method and size; only
        the rate with the lowest mean loss enters the results. If `rates` is empty, `learning_rate`
        is used for tickets and `dense_learning_rate` for trained models.
      dense_learning_rate: the peak learning rate of training without masks; it is used if `rates`
        is empty.
      runs_at_once: the number of runs that one program trains; 0 for all tickets, or all trained
        models, of a size.
    """

    seeds: int = 3
    models: tuple[str, ...] = ("tiny",)
    widths: tuple[float, ...] = (1.0,)
    methods: tuple[str, ...] = METHODS
    rates: tuple[float, ...] = ()
    dense_learning_rate: float = 1e-3
    runs_at_once: int = 0

    def __post_init__(self):
        super().__post_init__()
        if len(self.models) != len(self.widths):
            raise checks.fail(
                "widths", f"one number for each of {len(self.models)} models", self.widths
            )
        for method in self.methods:
            checks.choice("methods", method, METHODS)


PRESETS = {
    # Widths 32, 64, 128 and 256, three methods, five seeds: 30 to 40 minutes on two cores.
    "quick": Config(models=("nano",) * 4, widths=(1.0, 2.0, 4.0, 8.0), seeds=5, steps=400),
    # Widths 32, 64 and 128, three learning rates per method: about an hour on two cores.
    "tuned": Config(
        models=("nano",) * 3,
        widths=(1.0, 2.0, 4.0),
        rates=(3e-3, 1e-2, 3e-2),
        steps=400,
    ),
    # A single size and seed: one to two minutes.
    "tiny": Config(seeds=1, steps=200, chunk=50),
    "paper": Config(
        models=("mini", "mini", "small", "medium", "medium"),
        widths=(0.5, 1.0, 1.0, 1.0, 2.0),
        dense_learning_rate=1e-4,
        runs_at_once=1,
        **PAPER_RECIPE,
    ),
}


def run(config: Config, out: RunFolder) -> dict[str, Any]:
    """Train every model by every method, evaluate the controls, and plot the figure."""
    jobs = {
        (model, width, dense): config.job(model, width_multiplier=width, dense=dense)
        for (model, width), dense in itertools.product(
            zip(config.models, config.widths, strict=True), (False, True)
        )
        if _runs(config, Model(models.preset(model).settings), dense)
    }
    corpus = load_text(config)
    rows: list[dict[str, Any]] = []
    log: list[dict[str, Any]] = []
    for (model, width, dense), job in jobs.items():
        name = f"{model}-x{width:g}-{'dense' if dense else 'tickets'}"
        setting = {"model": model, "width_multiplier": width}
        for group in training.train_in_groups(
            name, job, _runs(config, job.model, dense), config.runs_at_once, corpus, out
        ):
            log += [setting | row for row in group.log]
            rows += [
                setting | {"nonzero": _nonzero(job, config)} | group.measurement(index)
                for index in range(len(group.runs))
            ]
        out.write_rows(rows)
    every = summarize(rows, ("model", "width_multiplier", "method", "nonzero", "learning_rate"))
    summary, rows = _best_rates(every, rows)
    sizes = list(zip(config.models, config.widths, strict=True))
    summary.sort(
        key=lambda row: (
            sizes.index((row["model"], row["width_multiplier"])),
            config.methods.index(row["method"]),
        )
    )
    out.figure(plots.against_size(summary), "language")
    shown = [
        row | {"model": f"{row['model']} x{row['width_multiplier']:g}"}
        for row in _of_rates(summary, log)
    ]
    out.figure(plots.curves(shown, "method"), "curves")
    by_bytes = stored.by_bytes(config.bits, jobs, rows)
    out.figure(plots.against_bytes(by_bytes), "bytes")
    paired = _paired(config, rows)
    return {
        "rows": summary,
        "rates": every if config.rates else [],
        "bytes": by_bytes,
        "paired": paired,
        "unigram_entropy": text.unigram_entropy(corpus.train, corpus.valid, corpus.vocab_size),
        "paper": PAPER,
        "claims": compare(paired),
    }


def _best_rates(every: list[Row], rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """Return the setting of lowest mean loss for each size and method, and these settings' rows."""
    best: dict[tuple, Row] = {}
    for setting in every:
        key = tuple(setting[name] for name in ("model", "width_multiplier", "method"))
        if key not in best or setting["mean"] < best[key]["mean"]:
            best[key] = setting
    chosen = list(best.values())
    return chosen, _of_rates(chosen, rows)


def _of_rates(chosen: list[Row], rows: list[Row]) -> list[Row]:
    """Return the rows of `rows` whose setting is in `chosen`."""
    names = ("model", "width_multiplier", "method", "learning_rate")
    settings = {tuple(setting[name] for name in names) for setting in chosen}
    return [row for row in rows if tuple(row[name] for name in names) in settings]


def compare(paired: list[dict[str, Any]]) -> list[claims.Claim]:
    """Compare with the paper's statement that scaling lowers the loss of tickets at every size."""
    return [
        claims.below_zero(
            f"loss of the scaled ticket less the ticket's, {row['model']} "
            f"x{row['width_multiplier']:g}",
            "scaled tickets are better at every size",
            row,
        )
        for row in paired
        if (row["method"], row["reference"]) == ("scaled", "ticket")
    ]


def _paired(config: Config, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the difference of losses for each pair of methods and each size, over the seeds."""
    pairs = [("scaled", "ticket"), ("scaled", "dense"), ("ticket", "dense")]
    return [
        {"model": model, "width_multiplier": width}
        | measure.paired(
            [row for row in rows if (row["model"], row["width_multiplier"]) == (model, width)],
            "method",
            *pair,
        )
        for model, width in zip(config.models, config.widths, strict=True)
        for pair in pairs
        if set(pair) <= set(config.methods)
    ]


def dry_run(config: Config, on: str | None = None) -> str:
    """Return the estimated cost of the comparison without starting it.

    Args:
      config: the settings.
      on: another machine, such as 'v5e:2x2'; None for this machine.
    """
    lines = [f"language: {config.steps} steps per run"]
    for model, width in zip(config.models, config.widths, strict=True):
        for dense in (False, True):
            job = config.job(model, width_multiplier=width, dense=dense)
            runs = _runs(config, job.model, dense)
            name = f"{model} x{width:g}, {'trained' if dense else 'tickets'}"
            if not runs:
                continue
            if on is None:
                lines += cost.report(name, job, len(runs), config.keep)
            else:
                lines += cost.report_on(on, name, job, runs[: config.runs_at_once or None])
    return "\n".join(lines)


def _runs(config: Config, model: Model, dense: bool) -> list[Run]:
    """Return the runs that one program can train: dense runs, or the tickets of both methods."""
    scales = {"dense": 1.0, "ticket": 1.0, "scaled": model.paper_qk_scale}
    rates = config.rates or (config.dense_learning_rate if dense else config.learning_rate,)
    return [
        Run(method, seed, scales[method], 1.0 if dense else config.keep, rate)
        for method in config.methods
        if (method == "dense") == dense
        for rate in rates
        for seed in range(config.seeds)
    ]


def _nonzero(job: Job, config: Config) -> int:
    if job.dense:
        return job.model.num_parameters
    return cost.num_nonzero(job.model, config.keep)
