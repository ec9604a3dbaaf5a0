"""The training loop: train and evaluate many runs together; save and load checkpoints."""

import contextlib
import dataclasses
import functools
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from slth_jax import checks, storage, wheels
from slth_jax.distributed import on_first, until_sigterm
from slth_jax.edge_popup.best import Best, moving
from slth_jax.edge_popup.runs import Runs
from slth_jax.edge_popup.scores import State

_KEPT = 2  # number of checkpoints kept: two, in case the last is damaged
Entry = dict[str, Any]
Log = list[Entry]
Progress = Callable[[int, int, Mapping[str, Any]], None]


class Trained(NamedTuple):
    """The result of `train`.

    Attributes:
      state: the state of all runs after the last step.
      best: the best evaluation of each run.
      log: one dict per evaluation. The keys of an entry are 'step', 'loss' (the mean training loss
        since the previous evaluation) and 'steps_per_second' (None if a program was compiled since
        the previous evaluation). If there are validation batches, an entry also has the keys
        'validation' (the validation loss) and the names of other measurements. If runs are
        evaluated before the first step, the entry of step 0 has neither 'loss' nor
        'steps_per_second'. Losses and measurements are lists with one value per run.
    """

    state: State
    best: Best
    log: Log


def train(
    runs: Runs,
    *,
    evaluate_every: int,
    evaluate_first: bool = False,
    best_params: bool = True,
    out: str | os.PathLike[str] | None = None,
    config: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Train all runs to their last step; resume from the last intact checkpoint in `out`, if any.

    The results of a run depend only on the settings of this run, not on other runs. Training that
    is killed and resumed gives the same bits as uninterrupted training. The best evaluation has the
    lowest validation loss, or the lowest mean training loss if there are no validation batches.

    Args:
      runs: the runs to train.
      evaluate_every: the number of steps between evaluations; each evaluation is followed by a
        checkpoint.
      evaluate_first: whether to evaluate also before the first step, when masks are still random.
      best_params: whether `Best` stores not only the masks but also the other arrays that training
        changes, which takes more memory.
      out: a folder for checkpoints.
      config: everything that the results depend on; `out` is refused if it contains a different
        config.
      progress: ``progress(step, steps, entry)`` is called after each evaluation; `entry` is the new
        entry of the log.

    Raises:
      ValueError: a loss or a gradient became NaN or infinite; the error message names the step and
        the run. The last intact checkpoint is kept.
      CheckpointError: `out` contains another training, is in use, or cannot be written to.
      SystemExit: with status 143, after SIGTERM, once the steps in progress are finished and saved.
        SIGTERM is handled only in the main thread, and only if `out` is given.
    """
    wheels.warn_if_unused()
    checks.integer("evaluate_every", evaluate_every, low=1)
    if out is not None:
        checks.record("out", out, str | os.PathLike)
    if evaluate_first and not runs.validation:
        raise checks.fail("evaluate_first", "False without validation batches", True)
    if out is not None and runs.program.processes < jax.process_count():
        allowed = f"devices of all {jax.process_count()} processes, which share `out`"
        raise checks.fail("mesh", allowed, f"one of {runs.program.processes}")
    report = progress or (lambda step, steps, entry: None)
    with _opened(out, config) as (folder, check):
        training = _begin(runs, folder, best_params)
        if evaluate_first and not training.log and not training.step:
            training.log.append({"step": 0, **training.validated()})
            report(0, runs.steps, training.log[-1])
        while training.step < runs.steps:
            until = (training.step // evaluate_every + 1) * evaluate_every
            training.advance(min(runs.steps, until), lambda: check(lambda: training.save(folder)))
            training.evaluate()
            training.save(folder)
            report(training.step, runs.steps, training.log[-1])
            check(None)
        return Trained(training.state, training.best, training.log)


@contextlib.contextmanager
def _opened(
    out: str | os.PathLike[str] | None, config: Mapping[str, Any] | None
) -> Iterator[tuple[storage.RunFolder | None, Callable]]:
    """Yield the locked folder and a function that checks for SIGTERM.

    If `out` is None, the folder is None and the function does nothing.
    """
    if out is None:
        yield None, lambda last: None
        return
    folder = storage.RunFolder(out, config or {}, kind="fit", pieces="checkpoints")
    with folder.claim(), until_sigterm() as check:
        yield folder, check


@dataclasses.dataclass
class _Training:
    """A training in progress: the state, the best evaluation, and the measurements."""

    runs: Runs
    state: State
    best: Best
    best_params: bool
    step: int = 0
    log: Log = dataclasses.field(default_factory=list)
    losses: list[Any] = dataclasses.field(default_factory=list)  # since the last evaluation
    lengths: set[int] = dataclasses.field(default_factory=set)  # numbers of steps already compiled
    pace: float | None = None  # steps per second since the last evaluation

    def advance(self, until: int, check: Callable[[], None]) -> None:
        """Train up to step `until`; check for SIGTERM between groups of steps."""
        begun, compiled, started = self.step, False, time.perf_counter()
        while self.step < until:
            end = self.runs.end_of_stretch(self.step, until)
            compiled |= end - self.step not in self.lengths
            self.lengths.add(end - self.step)
            self.state, metrics = self.runs.advance(self.state, self.step, end)
            self.losses.append(metrics)
            self.step = end
            if self.step < until:
                check()
        self._joined()  # waits for the device
        seconds = time.perf_counter() - started
        self.pace = None if compiled else (self.step - begun) / seconds

    def evaluate(self) -> None:
        """Evaluate all runs, add a log entry, and store the masks of runs with a new least loss."""
        value = self._joined().mean(axis=-1)
        self.losses = []
        entry: Entry = {"step": self.step, "loss": value.tolist(), "steps_per_second": self.pace}
        if self.runs.validation:
            entry |= self.validated()
            value = np.asarray(entry["validation"])
        self.log.append(entry)
        if np.any(value < self.best.loss):
            now = _best(self.runs, self.state, self.best_params)
            self.best = self.best.updated(value, self.step, now)

    def validated(self) -> Entry:
        """Return the measurements on the validation batches as a part of a log entry."""
        measured = self.runs.evaluate(self.state)
        _refuse(self.runs, measured["loss"], self.step, "validation loss")
        named = {"validation" if name == "loss" else name: x for name, x in measured.items()}
        return {name: value.tolist() for name, value in named.items()}

    def save(self, folder: storage.RunFolder | None) -> None:
        """Write a checkpoint, and remove all checkpoints but the last two."""
        if folder is not None:
            notes = {"step": self.step, "log": self.log, "losses": self._joined().tolist()}
            arrays = {"state": self.state, "best": self.best}
            folder.save(f"step-{self.step:08d}", arrays, notes)()
            for name in on_first(folder.names)[:-_KEPT]:
                folder.drop(name)

    def _joined(self) -> Float[np.ndarray, "run step"]:
        """Return the training losses since the last evaluation; refuse NaN and infinite losses."""
        empty = np.zeros((self.runs.program.runs, 0), np.float32)
        losses = np.concatenate([empty, *(m["loss"] for m in self.losses)], axis=-1)
        norms = np.concatenate([empty, *(m["grad_norm"] for m in self.losses)], axis=-1)
        finite = np.all(np.isfinite(losses) & np.isfinite(norms), axis=0)
        if not np.all(finite):
            column = int(np.argmin(finite))
            step = self.step - losses.shape[-1] + 1 + column
            _refuse(self.runs, losses[:, column], step, "training loss")
            _refuse(self.runs, norms[:, column], step, "gradient norm")
        return losses


def _begin(runs: Runs, folder: storage.RunFolder | None, best_params: bool) -> _Training:
    """Return the training from the last intact checkpoint; if there is none, a new training."""
    if folder is not None:
        # A damaged checkpoint is moved aside, and the checkpoint before it is used.
        name = on_first(functools.partial(_newest, folder))
        if name is not None:
            like = runs.program.shapes or runs.start()
            shapes = {"state": like, "best": _best_shapes(runs, like, best_params)}
            arrays, notes = folder.load(name, shapes)
            loss, at, *rest = arrays["best"]
            best = Best(np.asarray(loss), np.asarray(at), *rest)
            losses = np.asarray(notes["losses"], np.float32).reshape(runs.program.runs, -1)
            training = _Training(runs, arrays["state"], best, best_params, notes["step"])
            training.log = notes["log"]
            training.losses = [{"loss": losses, "grad_norm": np.zeros_like(losses)}]
            return training
    # Copied, since the program reuses the state's memory, and the caller may still need this state.
    state = jax.tree.map(jnp.copy, runs.start())
    return _Training(runs, state, _best(runs, state, best_params), best_params)


def _newest(folder: storage.RunFolder) -> str | None:
    return next((name for name in reversed(folder.names()) if folder.whole(name)), None)


def _best(runs: Runs, state: State, best_params: bool) -> Best:
    """Return a `Best` with the masks and trained arrays of a state; its loss is infinite."""
    # Copied, since the next steps reuse the state's memory.
    parts = jax.tree.map(jnp.copy, _moving(runs, state, best_params))
    return _open(runs, runs.packed(state), parts)


def _best_shapes(runs: Runs, like: State, best_params: bool) -> Best:
    """Return a `Best` with the shapes that `_best` returns or, if there is no mesh, with zeros."""

    def arrays(state: State) -> tuple[dict, dict]:
        masks = runs.program.packed(runs.keys, state, runs.keep, runs.control)
        return masks, _moving(runs, state, best_params)

    return _open(runs, *runs.program.like(jax.eval_shape(arrays, like)))


def _open(runs: Runs, masks: dict[str, Any], parts: dict[str, Any]) -> Best:
    count = runs.program.runs
    return Best(np.full(count, np.inf, np.float32), np.zeros(count, np.int32), masks, parts)


def _moving(runs: Runs, state: State, best_params: bool) -> dict[str, Any]:
    if not best_params:
        return {}
    redraws = bool(runs.program.task.variant.redraw_every)
    return moving(state, redraws=redraws, controls=runs.control is not None)


def _refuse(runs: Runs, values: Float[np.ndarray, " run"], step: int, what: str) -> None:
    """If a value is not finite, raise an error that names the first run with such a value."""
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        run = bad[0]
        raise ValueError(
            f"{what} must be finite, got {values[run]} at step {step} of {runs.names(run)}"
        )
