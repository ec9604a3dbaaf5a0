"""The results of a group of runs: rows of measurements and ticket files."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from experiments import measure, tickets
from experiments.folder import RunFolder
from experiments.language.job import Job, Run
from slth_jax import edge_popup, supermask, ticket
from slth_jax.models.settings import matrix_shapes, vector_shapes
from slth_jax.types import Array


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The results of a group of runs.

    Attributes:
      job: the settings that the runs share.
      runs: the settings of each run, in the order of the arrays below.
      log: rows of measurements, one per run and evaluation; the first evaluation is before any
        step.
      best: per run, the best validation loss, its step, and the masks at that step.
      shuffled: per run, the validation loss of the best masks with the entries of each matrix in
        random order; NaN for dense training.
      rounded: for each number of bits per weight, the validation losses of the trained models with
        the best weights rounded; empty for tickets.
    """

    job: Job
    runs: tuple[Run, ...]
    log: list[dict[str, Any]]
    best: edge_popup.Best
    shuffled: np.ndarray
    rounded: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)

    def last(self, index: int, name: str = "val_loss") -> float:
        """Return the last logged value of a run."""
        return self._values(index, name)[-1]

    def first(self, index: int, name: str = "val_loss") -> float:
        """Return a run's value before training; for tickets, `val_loss` of a random mask."""
        return self._values(index, name)[0]

    def kept(self, index: int) -> dict[str, float]:
        """Return the fraction of each matrix that a run's best masks keep."""
        shapes = self.job.model.shapes
        return {
            name: int(np.bitwise_count(np.asarray(bits[index])).sum()) / math.prod(shapes[name])
            for name, bits in self.best.masks.items()
        }

    def measurement(self, index: int) -> dict[str, Any]:
        """Return a run's row for ``rows.jsonl``, with its settings and measurements."""
        loss = float(self.best.loss[index])
        row = self.runs[index]._asdict() | {
            "loss": loss,
            "perplexity": math.exp(min(loss, 700.0)),
            "best_step": int(self.best.step[index]),
            "last_loss": self.last(index),
            "tokens_per_second": self.tokens_per_second(),
        }
        if self.job.dense:
            row |= {f"loss_{b}_bits": float(loss[index]) for b, loss in self.rounded.items()}
        else:
            row["bytes"] = self.num_bytes(index)
            row["random_mask"] = self.first(index)
            row["shuffled_mask"] = float(self.shuffled[index])
            row["kept"] = self.kept(index)
        return row

    def num_bytes(self, index: int) -> int:
        """Return the bytes of a run's best masks in a ticket file, plus its trained parameters."""
        masks = {name: np.asarray(bits[index]) for name, bits in self.best.masks.items()}
        stored = sum(bits.size for bits in ticket.stored(masks).values())
        sizes = matrix_shapes(self.job.model.settings) | vector_shapes(self.job.model.settings)
        return stored + 4 * sum(math.prod(sizes[name]) for name in self.job.model.learned)

    def tokens_per_second(self) -> float | None:
        """Return the median speed of all runs together, without compilation."""
        speeds = [row["tokens_per_second"] for row in self.log if row["tokens_per_second"]]
        return float(np.median(speeds)) * len(self.runs) if speeds else None

    def _values(self, index: int, name: str) -> list[float]:
        return [row[name] for row in self.log if row["run"] == index]

    def masks(self, index: int) -> dict[str, Array]:
        """Return a run's best masks."""
        shapes = self.job.model.shapes
        return {
            name: supermask.unpack(bits[index], shapes[name])
            for name, bits in self.best.masks.items()
        }


def save_tickets(outcome: Outcome, out: RunFolder, *, prefix: str = "") -> None:
    """Write each run's best masks as ``PREFIXNAME.ticket.safetensors``.

    Writes nothing if the result is not source weights times masks alone: dense training, learned
    parameters, or weights that were re-drawn.
    """
    job = outcome.job
    if job.dense or job.variant.redraw_every or job.model.learned:
        return
    for index, run in enumerate(outcome.runs):
        tickets.save(
            out,
            prefix + run.name,
            "gpt2",
            {"qk_scale": run.qk_scale, **job.model.options()},
            run.seed,
            outcome.masks(index),
            metadata={
                "method": run.method,
                "keep": run.keep,
                "step": int(outcome.best.step[index]),
                "val_loss": float(outcome.best.loss[index]),
                "versions": f"jax {jax.__version__}",
            },
        )


def rows_of(
    job: Job, runs: Sequence[Run], log: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return a row per run and evaluation, from the log of `edge_popup.train`."""
    rows = []
    for entry in log:
        pace = entry.get("steps_per_second")
        for index, run in enumerate(runs):
            loss = entry["validation"][index]
            rows.append(
                {
                    "run": index,
                    **run._asdict(),
                    "step": entry["step"],
                    "val_loss": loss,
                    "perplexity": math.exp(min(loss, 700.0)),
                    "train_loss": entry["loss"][index] if "loss" in entry else None,
                    "tokens_per_second": pace and pace * job.rows * job.length,
                }
            )
    return rows


def summarize(rows: Sequence[Mapping[str, Any]], by: Sequence[str]) -> list[dict[str, Any]]:
    """Return a row per setting: moments of the best validation loss, and means of the controls."""
    controls = ("last_loss", "random_mask", "shuffled_mask")
    more = {name: (name, measure.mean) for name in controls}
    return measure.summarize(rows, by, "loss", **more)
