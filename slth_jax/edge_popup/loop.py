"""The loop: runs trained, evaluated, re-drawn, saved and resumed, one of them or many at once."""

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from slth_jax import checks
from slth_jax.distributed import until_sigterm
from slth_jax.edge_popup.best import Best, moving
from slth_jax.edge_popup.checkpoints import Store
from slth_jax.edge_popup.runs import Runs
from slth_jax.edge_popup.scores import State
from slth_jax.types import Array

Log = list[dict[str, Any]]


class Trained(NamedTuple):
    """What a training came to.

    Attributes:
      state: after the last step.
      best: the best evaluation of each run.
      log: an entry an evaluation: 'step'; 'loss', the mean of the training losses since the last
        (not before the first step); 'validation' where there are validation batches; and
        'steps_per_second', None where something was compiled. Losses of many runs are lists.
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
    progress: Callable[[int, int, Log], None] | None = None,
) -> Trained:
    """Train to the end of the recipe, from the last good checkpoint in `out` if there is one.

    A run's numbers depend on its own settings only, so one that was killed and goes on ends with
    the same bits. The best evaluation is that of the lowest validation loss, or of the lowest mean
    training loss where there are no validation batches.

    Args:
      runs: one, or many.
      evaluate_every: steps between evaluations, each followed by a checkpoint.
      evaluate_first: evaluate before the first step, too: the loss under random masks.
      best_params: keep what learns, and what is re-drawn, as it was at the best evaluation. False
        saves that memory where nobody asks for it, as in dense training.
      out: a folder for checkpoints.
      config: what the results depend on; a folder of another config is refused.
      progress: called with (step, steps, log) after each evaluation.

    Raises:
      ValueError: a loss became NaN or infinite; the line names the step and the run. The last good
        checkpoint stays.
      CheckpointError: `out` holds another training, is in use, or cannot be written to.
      SystemExit: 143, after SIGTERM, once the steps in flight are made and saved; where `out` is
        given and this is the main thread.
    """
    checks.integer("evaluate_every", evaluate_every, low=1)
    if evaluate_first and not runs.validation:
        raise checks.fail("evaluate_first", "False without validation batches", True)
    steps = runs.program.recipe.steps
    with contextlib.ExitStack() as stack:
        store, check = None, _never
        if out is not None:
            store = Store(Path(out), config or {})
            stack.enter_context(store.locked())
            check = stack.enter_context(until_sigterm())
        state, best, step, log, losses = _begin(runs, store, best_params)

        def save() -> None:
            if store is not None:
                notes = {"step": step, "log": log, "losses": _joined(runs, losses, step).tolist()}
                store.save(step, {"state": state, "best": best}, notes)

        if evaluate_first and not log and not step:
            log.append({"step": 0, "validation": _validated(runs, state, 0).tolist()})
        lengths: set[int] = set()  # of stretches: each is compiled once
        while step < steps:
            until = min(steps, (step // evaluate_every + 1) * evaluate_every)
            begun, compiled, started = step, False, time.perf_counter()
            while step < until:
                end = runs.end_of_stretch(step, until)
                compiled |= end - step not in lengths
                lengths.add(end - step)
                state, made = runs.advance(state, step, end)
                losses.append(made)
                step = end
                if step < until:
                    check(save)
            trained = _joined(runs, losses, step).mean(axis=-1)
            seconds = time.perf_counter() - started
            losses = []
            entry = {"step": step, "loss": trained.tolist()}
            entry["steps_per_second"] = None if compiled else (step - begun) / seconds
            value = trained
            if runs.validation:
                value = _validated(runs, state, step)
                entry["validation"] = value.tolist()
            log.append(entry)
            if np.any(value < best.loss):
                best = best.updated(value, step, _found(runs, state, best_params))
            save()
            if progress is not None:
                progress(step, steps, log)
            check()
        return Trained(state, best, log)


def _never(last: Callable[[], None] | None = None) -> None:
    """Without a folder there is nothing to save, and no signal is asked for."""


def _begin(
    runs: Runs, store: Store | None, best_params: bool
) -> tuple[State, Best, int, Log, list[Any]]:
    """Return state, best, step, log and losses since it, of a checkpoint or of the beginning."""
    if store is not None:
        state = runs.program.shapes or runs.start()
        found = store.restore({"state": state, "best": _like(runs, state, best_params)})
        if found is not None:
            arrays, notes = found
            best = Best(*(jax.tree.map(np.asarray, part) for part in arrays["best"]))
            losses = np.asarray(notes["losses"], np.float32)
            pending = [losses] if losses.shape[-1] else []
            return arrays["state"], best, notes["step"], notes["log"], pending
    state = runs.start()
    return state, _found(runs, state, best_params), 0, [], []


def _found(runs: Runs, state: State, best_params: bool) -> Best:
    """Return what a best evaluation keeps of a state, its loss still open."""
    masks, params = runs.packed(state), _moving(runs, state, best_params)
    if runs.program.runs is not None:  # the next steps take the state's memory
        params = jax.tree.map(np.array, params)
    return _open(runs, masks, params)


def _like(runs: Runs, state: State, best_params: bool) -> Best:
    """Return zeros of the shapes of `_found`; `state` may be shapes only."""
    shapes = jax.eval_shape(
        lambda state: (
            runs.program.packed(state, runs.hparams),
            _moving(runs, state, best_params),
        ),
        state,
    )
    return _open(runs, *jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes))


def _open(runs: Runs, masks: dict[str, Any], params: dict[str, Any]) -> Best:
    loss = np.full(_shape(runs), np.inf, np.float32)
    return Best(loss, np.zeros(_shape(runs), np.int32), masks, params)


def _moving(runs: Runs, state: State, best_params: bool) -> dict[str, Array]:
    redraws = bool(runs.program.variant.redraw_every)
    return moving(state, weights=redraws) if best_params else {}


def _shape(runs: Runs) -> tuple[int, ...]:
    return () if runs.program.runs is None else (runs.program.runs,)


def _joined(runs: Runs, losses: list[Any], step: int) -> np.ndarray:
    """Return the training losses up to `step` as one array `[(run,) step]`, all finite."""
    empty = np.zeros((*_shape(runs), 0), np.float32)
    joined = np.concatenate([empty, *map(np.asarray, losses)], axis=-1)
    _refuse(runs, joined, step - joined.shape[-1] + 1, "training")
    return joined


def _validated(runs: Runs, state: State, step: int) -> np.ndarray:
    losses = runs.evaluate(state)
    _refuse(runs, losses[..., None], step, "validation")
    return losses


def _refuse(runs: Runs, losses: np.ndarray, first_step: int, which: str) -> None:
    """Raise on the earliest loss `[(run,) step]` that is not finite."""
    bad = np.argwhere(~np.isfinite(losses.T))
    if len(bad):
        column, *index = bad[0]
        came = losses.T[tuple(bad[0])]
        whose = f" of {runs.names(index[0])}" if runs.names is not None else ""
        raise ValueError(
            f"{which} loss must be finite, got {came} at step {first_step + column}{whose}"
        )
