"""What the processes of one run agree on: errors, and when to stop."""

import contextlib
import json
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from slth_jax.storage import CheckpointError

# What a shell reports for a process ended by SIGTERM; batch systems take it as "preempted".
PREEMPTED = 128 + signal.SIGTERM


def on_first(step: Callable[[], Any]) -> Any:
    """Call `step` on the first process; every process returns its value or raises its error.

    The value must be made of JSON's types. Without this, one process would stop at a full disk
    and the others would wait for it forever.
    """
    if jax.process_count() == 1:
        return step()
    told: dict[str, Any] = {}
    error: CheckpointError | None = None
    if jax.process_index() == 0:
        try:
            told["value"] = step()
        except CheckpointError as caught:
            error, told["error"] = caught, str(caught)
    text = np.frombuffer(json.dumps(told).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    text = text if jax.process_index() == 0 else np.zeros(size, np.uint8)
    told = json.loads(multihost_utils.broadcast_one_to_all(text).tobytes())
    if error is not None:
        raise error
    if "error" in told:
        raise CheckpointError(told["error"])
    return told["value"]


@contextlib.contextmanager
def until_sigterm() -> Iterator[Callable[..., None]]:
    """Yield ``check(last=None)``: it ends every process with status 143 once any got SIGTERM.

    While the block runs the signal only sets a flag, so nothing is cut in the middle; `last`, where
    given, is called before the end. Outside the main thread, where Python cannot handle signals,
    the check does nothing of its own.
    """
    asked = threading.Event()
    here = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set()) if here else None

    def check(last: Callable[[], None] | None = None) -> None:
        stop = asked.is_set()
        if jax.process_count() > 1:
            stop = bool(np.any(multihost_utils.process_allgather(np.array(stop))))
        if stop:
            if last is not None:
                last()
            raise SystemExit(PREEMPTED)

    try:
        yield check
    finally:
        if here:
            signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
