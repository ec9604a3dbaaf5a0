"""Generate the table of the estimated cost of figures 7 and 8 at the paper's sizes."""

from typing import Any

from experiments.language import cost
from experiments.language.comparison import PRESETS as OF_FIGURE_7
from experiments.language.job import Job
from experiments.language.weight_scale import PRESETS as OF_FIGURE_8
from experiments.machine import duration
from experiments.pages.blocks import table, wrapped

DEVICES = (("H100 SXM", 8), ("TPU v5e", 16))


def paper_cost() -> str:
    """Return the table of estimated memory and time of figures 7 and 8 (preset 'paper')."""
    rows = [_row(*entry) for entry in (*_figure_7(), *_figure_8())]
    names = (
        "figure", "model", "width", "parameters", "not zero in a ticket", "runs", "GB per run",
        *(f"time on {count} {device}" for device, count in DEVICES),
    )  # fmt: skip
    note = (
        f"The table is computed, not measured. Its times assume {100 * cost.UTILISATION:.0f} % of "
        f'the devices\' peak speed in bfloat16 and contain no evaluations. The column "GB per run" '
        f"contains the memory of one run on one device: weights, scores, two moments and a "
        f"gradient in float32, and the activations of 1 / {_job('small').accumulate} of a batch. "
        f"Runs share the devices. If a model needs more than the 16 GB of a v5e chip, "
        f"`--set mesh=RUN,DATA,MODEL` splits it over several chips; the three numbers are the "
        f"numbers of devices along the axes of the mesh."
    )
    return f"{table(names, rows)}\n\n{wrapped(note)}"


def _job(model: str) -> Job:
    return OF_FIGURE_8["paper"].job(model)


def _figure_7() -> list[tuple[int, str, Job, int]]:
    config = OF_FIGURE_7["paper"]
    runs = len(config.methods) * config.seeds
    return [
        (7, model, config.job(model, width_multiplier=width), runs)
        for model, width in zip(config.models, config.widths, strict=True)
    ]


def _figure_8() -> list[tuple[int, str, Job, int]]:
    config = OF_FIGURE_8["paper"]
    runs = len(config.scales) * config.seeds
    return [(8, model, config.job(model), runs) for model in config.models]


def _row(figure: int, name: str, job: Job, runs: int) -> tuple[Any, ...]:
    model = job.model
    tokens = job.schedule.steps * job.rows * job.length
    flops = runs * tokens * cost.flops_per_token(model, job.length)
    return (
        figure, name, model.settings.width, f"{model.num_parameters / 1e6:,.0f} M",
        f"{cost.num_nonzero(model, OF_FIGURE_7['paper'].keep) / 1e6:,.0f} M", runs,
        f"{cost.memory(job) / 1e9:.1f}",
        *(
            duration(flops / (count * cost.ACCELERATORS[device][0] * 1e12 * cost.UTILISATION))
            for device, count in DEVICES
        ),
    )  # fmt: skip
