"""Convert the results of a group of runs to measurements and ticket files."""

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
      log: a dict of measurements per run and evaluation; the first evaluation is before any step.
      best: for each run, the lowest validation loss, the step at which it was measured, and the
        masks at this step.
      shuffled: for each run, the validation loss of the best masks after the entries of each matrix
        are put in random order; NaN for dense training.
      rounded: a dict from each number of bits per weight to the runs' validation losses after the
        best weights are rounded to this number of bits; empty for tickets.
    """

    job: Job
    runs: tuple[Run, ...]
    log: list[dict[str, Any]]
    best: edge_popup.Best
    shuffled: np.ndarray
    rounded: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)

    def last(self, index: int, name: str = "val_loss") -> float:
        """Return the last logged value of the measurement `name` for a run."""
        return self._values(index, name)[-1]

    def first(self, index: int, name: str = "val_loss") -> float:
        """Return a run's measurement `name` before training (of a ticket: with initial masks)."""
        return self._values(index, name)[0]

    def kept(self, index: int) -> dict[str, float]:
        """Return, for each matrix, the fraction of entries that a run's best masks keep."""
        shapes = self.job.model.shapes
        return {
            name: int(np.bitwise_count(np.asarray(bits[index])).sum()) / math.prod(shapes[name])
            for name, bits in self.best.masks.items()
        }

    def measurement(self, index: int) -> dict[str, Any]:
        """Return a run's settings and measurements as a dict for ``rows.jsonl``."""
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
        """Return the stored bytes of a run's best masks and trained parameters together."""
        masks = {name: np.asarray(bits[index]) for name, bits in self.best.masks.items()}
        stored = sum(bits.size for bits in ticket.stored(masks).values())
        sizes = matrix_shapes(self.job.model.settings) | vector_shapes(self.job.model.settings)
        return stored + 4 * sum(math.prod(sizes[name]) for name in self.job.model.learned)

    def tokens_per_second(self) -> float | None:
        """Return the tokens per second that all runs process together.

        The value is the median over the log and excludes compilation.
        """
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

    Nothing is written if the result is more than source weights times masks: after dense training,
    if parameters were learned, or if weights were re-drawn.
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
    """Return a dict per run and evaluation, made from the log of `edge_popup.train`."""
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
    """Return, per setting, moments of the best validation loss and means of the control losses."""
    controls = ("last_loss", "random_mask", "shuffled_mask")
    more = {name: (name, measure.mean) for name in controls}
    return measure.summarize(rows, by, "loss", **more)
