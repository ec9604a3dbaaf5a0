"""Agreement among the processes of one run: values, errors, and when to stop."""

import contextlib
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

# The status that a shell reports for a process ended by SIGTERM; batch systems read "preempted".
PREEMPTED = 128 + signal.SIGTERM


def on_first(step: Callable[[], Any]) -> Any:
    """Call `step` on the first process; every process returns its value or raises its error.

    Otherwise one process would stop at a full disk and the rest would wait for it forever.
    """
    if jax.process_count() == 1:
        return step()
    value, error = None, None
    if jax.process_index() == 0:
        try:
            value = step()
        except Exception as caught:
            error = caught if _travels(caught) else RuntimeError(f"{type(caught)}: {caught}")
    value, error = _broadcast((value, error))
    if error is not None:
        raise error
    return value


def _travels(error: Exception) -> bool:
    """Return whether an exception can be sent to another process."""
    try:
        return type(pickle.loads(pickle.dumps(error))) is type(error)
    except Exception:
        return False


def _broadcast(value: Any) -> Any:
    """Return the value of the first process on every process."""
    data = np.frombuffer(pickle.dumps(value), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    if jax.process_index() > 0:
        data = np.zeros(size, np.uint8)
    return pickle.loads(multihost_utils.broadcast_one_to_all(data).tobytes())


@contextlib.contextmanager
def until_sigterm() -> Iterator[Callable[..., None]]:
    """Yield ``check(last=None)``: it ends every process with status 143 once any got SIGTERM.

    While the block runs the signal only sets a flag, so nothing is cut in the middle. `last`, if
    given, is called before the end. Outside the main thread, where Python cannot handle signals,
    the check never ends the process by itself.
    """
    stop_requested = threading.Event()
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = None
    if in_main_thread:
        before = signal.signal(signal.SIGTERM, lambda *_: stop_requested.set())

    def check(last: Callable[[], None] | None = None) -> None:
        stop = stop_requested.is_set()
        if jax.process_count() > 1:
            stop = bool(np.any(multihost_utils.process_allgather(np.array(stop))))
        if stop:
            if last is not None:
                last()
            raise SystemExit(PREEMPTED)

    try:
        yield check
    finally:
        if in_main_thread:
            signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
