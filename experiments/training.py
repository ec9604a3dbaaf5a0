"""Training of many runs of one language model in one program, with logs and exact resume.

training_job         what a program is made for, and what its runs differ in
training_functions   the compiled functions of a job, spread over a mesh of devices
training_store       checkpoints: the runs' state, the best masks so far and the log
training_program     a group of runs
training             the loop
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import text
from experiments.training_job import Job, Run
from experiments.training_program import Program
from experiments.training_store import Best, Store
from slth_jax import gpt2, storage, supermask, ticket
from slth_jax.sweep.hosts import on_first, until_sigterm

__all__ = ["Job", "Outcome", "Run", "save_tickets", "train"]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a group of runs came to.

    Attributes:
      job: what the runs share.
      runs: in the order of the arrays below.
      log: rows of measurements, one per run and evaluation, the first before any step.
      best: best validation loss and its step per run, and the masks at that step.
      shuffled: validation loss of the best masks with each matrix's entries in random order; NaN
        for dense training.
    """

    job: Job
    runs: tuple[Run, ...]
    log: list[dict[str, Any]]
    best: Best
    shuffled: np.ndarray

    def last(self, index: int, name: str = "val_loss") -> float:
        """Return the last logged value of a run."""
        return self._values(index, name)[-1]

    def first(self, index: int, name: str = "val_loss") -> float:
        """Return the value before training: of a ticket, the loss under a random mask."""
        return self._values(index, name)[0]

    def kept(self, index: int) -> dict[str, float]:
        """Return the fraction of each matrix that a run's best masks keep."""
        shapes = gpt2.matrix_shapes(self.job.model)
        return {
            name: int(np.bitwise_count(bits[index]).sum()) / math.prod(shapes[name])
            for name, bits in self.best.masks.items()
        }

    def measurement(self, index: int) -> dict[str, Any]:
        """Return a run's row for ``rows.jsonl``: its settings and what it came to."""
        loss = float(self.best.loss[index])
        row = self.runs[index]._asdict() | {
            "loss": loss,
            "perplexity": math.exp(min(loss, 700.0)),
            "best_step": int(self.best.step[index]),
            "last_loss": self.last(index),
            "tokens_per_second": self.tokens_per_second(),
        }
        if not self.job.dense:
            row["random_mask"] = self.first(index)
            row["shuffled_mask"] = float(self.shuffled[index])
            row["kept"] = self.kept(index)
        return row

    def tokens_per_second(self) -> float | None:
        """Return the median speed of all runs together, compilation left out."""
        speeds = [row["tokens_per_second"] for row in self.log if row["tokens_per_second"]]
        return float(np.median(speeds)) * len(self.runs) if speeds else None

    def _values(self, index: int, name: str) -> list[float]:
        return [row[name] for row in self.log if row["run"] == index]


def train(
    job: Job,
    runs: Sequence[Run],
    corpus: text.Corpus,
    folder: Path,
    *,
    log_file: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Outcome:
    """Train `runs` together to the end, from the last good checkpoint in `folder` if there is one.

    After every `job.chunk` steps the runs are evaluated, logged and checkpointed. What a run
    computes depends on its own settings only, so a killed and resumed run has the same losses.
    `log_file` is kept up to date with the log, a row of JSON per run and evaluation.

    Raises:
      ValueError: a loss became NaN or infinite; the line names the step and the run's settings.
        The last good checkpoint stays.
      SystemExit: 143, after SIGTERM, once the state is saved.
    """
    if corpus.vocab_size > job.model.vocab_size:
        raise ValueError(
            f"vocab_size must be at least the tokenizer's {corpus.vocab_size}, "
            f"got {job.model.vocab_size}"
        )
    program = Program(job, runs)
    valid = text.windows(corpus.valid, rows=job.eval_rows, length=job.length)
    store = Store(folder, program)
    state, best, log = store.restore()
    if not log:
        losses = program.evaluate(state, valid)
        _refuse_nan(runs, losses[:, None], 0, "validation")
        log = _rows(runs, 0, losses, {})
    compiled: set[int] = set()
    with until_sigterm() as check:
        while (step := int(log[-1]["step"])) < job.recipe.steps:
            until = min(step + job.chunk, job.recipe.steps)
            started, new, trained = time.perf_counter(), False, []
            for begin, end in program.segments(step, until):
                new |= end - begin not in compiled
                compiled.add(end - begin)
                state, losses = program.advance(state, _batches(job, runs, corpus, begin, end))
                _refuse_nan(runs, losses, begin + 1, "training")
                trained.append(losses)
                state = program.redraw(state, end)
            seconds = time.perf_counter() - started
            losses = program.evaluate(state, valid)
            _refuse_nan(runs, losses[:, None], until, "validation")
            best = best.updated(losses, until, functools.partial(program.packed, state))
            speed = None if new else (until - step) * job.rows * job.length / seconds
            measured = {
                "train_loss": np.concatenate(trained, axis=1).mean(axis=1),
                "tokens_per_second": [speed] * len(runs),
            }
            log += _rows(runs, until, losses, measured)
            store.save(state, best, log)
            if log_file is not None:
                on_first(functools.partial(storage.write_rows, log_file, log))
            progress(until, job.recipe.steps)
            check()
    shuffled = np.full(len(runs), np.nan)
    if not job.dense:
        shuffled = program.evaluate_shuffled(state, best, valid)
    return Outcome(job, tuple(runs), log, best, shuffled)


def save_tickets(outcome: Outcome, folder: Path, *, prefix: str = "") -> int:
    """Write each run's best mask as ``PREFIXNAME.ticket.safetensors``; return how many.

    None where a ticket is not source times mask alone: dense training, learned parameters, or
    weights that were re-drawn.
    """
    job = outcome.job
    if job.dense or job.variant.redraw_every or gpt2.learned_names(job.model):
        return 0

    def write() -> int:
        for index, run in enumerate(outcome.runs):
            shapes = gpt2.matrix_shapes(job.model)
            kept = {
                name: supermask.unpack(bits[index], shapes[name])
                for name, bits in outcome.best.masks.items()
            }
            found = ticket.create(
                "gpt2",
                {"qk_scale": run.qk_scale, **_plain(job.model)},
                run.seed,
                kept,
                metadata={
                    "method": run.method,
                    "keep": run.keep,
                    "step": int(outcome.best.step[index]),
                    "val_loss": float(outcome.best.loss[index]),
                    "versions": f"jax {jax.__version__}",
                },
            )
            ticket.save(folder / f"{prefix}{run.name}{ticket.SUFFIX}", found, overwrite=True)
        return len(outcome.runs)

    return on_first(write)


def _plain(model: gpt2.Config) -> dict[str, Any]:
    fields = dataclasses.asdict(model)
    return {name: value for name, value in fields.items() if value is not None}


def _batches(
    job: Job, runs: Sequence[Run], corpus: text.Corpus, begin: int, end: int
) -> np.ndarray:
    """Return the batches of steps `begin` to `end`, `[run, step, row, length + 1]`."""
    by_seed = {
        seed: np.stack(
            [
                text.batch(corpus.train, seed=seed, step=step, rows=job.rows, length=job.length)
                for step in range(begin, end)
            ]
        )
        for seed in {run.seed for run in runs}
    }
    return np.stack([by_seed[run.seed] for run in runs])


def _rows(
    runs: Sequence[Run], step: int, losses: np.ndarray, measured: dict[str, Any]
) -> list[dict[str, Any]]:
    rows = []
    for index, run in enumerate(runs):
        rows.append(
            {
                "run": index,
                **run._asdict(),
                "step": step,
                "val_loss": float(losses[index]),
                "perplexity": float(np.exp(min(losses[index], 700.0))),
                "train_loss": float(measured["train_loss"][index]) if measured else None,
                "tokens_per_second": measured["tokens_per_second"][index] if measured else None,
            }
        )
    return rows


def _refuse_nan(runs: Sequence[Run], losses: np.ndarray, first_step: int, which: str) -> None:
    """Raise on the earliest loss `[run, step]` that is not finite."""
    bad = np.argwhere(~np.isfinite(losses.T))
    if len(bad):
        column, index = bad[0]
        run, came = runs[index], losses[index, column]
        raise ValueError(
            f"{which} loss must be finite, got {came} at step {first_step + column} of run "
            f"{run.name} (learning_rate={run.learning_rate:g}, keep={run.keep:g}, "
            f"qk_scale={run.qk_scale:g}); the last good checkpoint stays"
        )
