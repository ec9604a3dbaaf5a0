"""Join the processes of a run, so that they share values, report errors and stop together."""

import contextlib
import contextvars
import itertools
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax._src import distributed as jax_distributed  # the client has no public name
from jax.experimental import multihost_utils

from slth_jax import checks
from slth_jax.watch import LOST, PREEMPTED, Watch, print_traceback

__all__ = [
    "LOST", "PREEMPTED", "alone", "joined", "on_first", "print_traceback", "until_sigterm",
    "wait_for_all", "whole",
]  # fmt: skip

# Seconds within which all processes must join; SLTH_JOIN_SECONDS overrides them.
_JOINING = 40
# JAX aborts after this many seconds without a sign of life from a process. This is a fallback for
# the case that the thread of `Watch` hangs in a request to a host that is off.
_HEARTBEAT = 45
# Seconds for which a process that has done its part waits for the others to leave.
_LEAVING = 20
# Milliseconds for which a process waits for the others to finish their parts. The number is so
# large that there is no limit in effect: `joined` ends every process once another one is lost.
_FOREVER = 30 * 24 * 3600 * 1000
_barriers = itertools.count()
_is_alone = contextvars.ContextVar("alone", default=False)


def on_first(step: Callable[[], Any]) -> Any:
    """Call `step` on the first process; every process returns its value or raises its error.

    Without this function, an error on the first process alone, such as a full disk, would leave the
    other processes waiting forever.
    """
    if not _several():
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


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Let this process work alone within the `with` block, without waiting for other processes."""
    before = _is_alone.set(True)
    try:
        yield
    finally:
        _is_alone.reset(before)


def _several() -> bool:
    return jax.process_count() > 1 and not _is_alone.get()


def wait_for_all() -> None:
    """Wait, without a time limit, until every process of the run has called this function."""
    if jax.process_count() > 1:
        client: Any = jax_distributed.global_state.client
        client.wait_at_barrier(f"slth/{next(_barriers)}", _FOREVER)


def whole(array: Any) -> np.ndarray:
    """Return an array as a NumPy array on every process, even if it is spread over processes."""
    if not isinstance(array, jax.Array) or array.is_fully_addressable:
        return np.asarray(array)
    if array.is_fully_replicated:
        return np.asarray(array.addressable_data(0))
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def _travels(error: Exception) -> bool:
    """Return whether an exception can be pickled and sent to another process."""
    try:
        return type(pickle.loads(pickle.dumps(error))) is type(error)
    except Exception:
        return False


def _broadcast(value: Any) -> Any:
    """Return, on every process, the value that the first process passed."""
    data = np.frombuffer(pickle.dumps(value), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    if jax.process_index() > 0:
        data = np.zeros(size, np.uint8)
    return pickle.loads(multihost_utils.broadcast_one_to_all(data).tobytes())


@contextlib.contextmanager
def until_sigterm() -> Iterator[Callable[..., None]]:
    """Yield ``check(last=None)``, which ends all processes once one process has received SIGTERM.

    The exit status of every process is then 143. Within the `with` block the signal only sets a
    flag, so no operation is interrupted. If the function `last` is given, `check` calls it before
    it ends the process. Outside the main thread Python cannot handle signals, so `check` then
    reacts only to signals that other processes received.
    """
    stop_requested = threading.Event()
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = None
    if in_main_thread:
        before = signal.signal(signal.SIGTERM, lambda *_: stop_requested.set())

    def check(last: Callable[[], None] | None = None) -> None:
        stop = stop_requested.is_set()
        if _several():
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


@contextlib.contextmanager
def joined(how: str, report: Callable[[BaseException], int] | None = None) -> Iterator[None]:
    """Join the processes of one run for the duration of the `with` block.

    A process never waits forever for a process that is lost. Each process reports every second that
    it is alive. If another process has failed, or has been silent for 25 seconds, this process
    prints a line that names the lost process and ends with the status `LOST`. This process also
    ends with a line and the status `LOST` if not all processes join within 40 seconds
    (SLTH_JOIN_SECONDS). If the `with` block raises an error, `report` is called and this process
    ends immediately.

    Args:
      how: 'off' for this process alone; 'on' for the processes that a scheduler (Slurm, MPI, Cloud
        TPU, Kubernetes) describes; 'auto' for 'on' if a scheduler is found and 'off' otherwise; or
        'HOST:PORT,I/N' for process I of N, where process 0 is at HOST:PORT.
      report: a function that prints an error and returns the exit status. If `report` is None,
        Python's traceback is printed and the exit status is 1.

    Raises:
      ValueError: `how` is invalid, `how` is 'on' and no scheduler was found, or the processes
        cannot be joined.
    """
    if how == "off" or jax.distributed.is_initialized():
        yield
        return
    options = _place(how)
    # JAX would swallow SIGTERM, which `until_sigterm` handles.
    jax.config.update("jax_enable_preemption_service", False)
    joining = _seconds_to_join()
    watch = Watch(joining)
    try:
        jax.distributed.initialize(
            **options,
            initialization_timeout=joining,
            heartbeat_timeout_seconds=_HEARTBEAT,
            shutdown_timeout_seconds=_LEAVING,
        )
    except (ValueError, RuntimeError) as error:
        watch.cancel()
        if isinstance(error, RuntimeError):
            line = str(error).splitlines()[0]
            raise ValueError(f"cannot join the processes: {line}") from error
        if how != "auto":
            raise
        yield  # no scheduler was detected
        return
    watch.start()
    try:
        yield
        wait_for_all()
    except SystemExit as stop:
        if stop.code == PREEMPTED:
            watch.stopped()
            raise
        watch.failed(stop, lambda _: stop.code if isinstance(stop.code, int) else 1)
    except BaseException as error:
        watch.failed(error, report)
    watch.finished()


def _seconds_to_join() -> int:
    text = os.environ.get("SLTH_JOIN_SECONDS", str(_JOINING))
    if not text.isdigit():
        raise checks.fail("SLTH_JOIN_SECONDS", "a whole number of seconds", repr(text))
    return int(text)


def _place(how: str) -> dict[str, Any]:
    """Return the arguments of `jax.distributed.initialize` for the argument `how` of `joined`."""
    if how in ("on", "auto"):
        return {}
    address, _, part = how.partition(",")
    host, _, port = address.rpartition(":")
    index, slash, count = part.partition("/")
    numbers = (port, index, count)
    if not (host and slash and all(map(str.isdigit, numbers)) and int(index) < int(count)):
        allowed = "'on', 'off', 'auto' or 'HOST:PORT,I/N' with 0 <= I < N"
        raise ValueError(f"distributed must be {allowed}, got {how!r}")
    return {
        "coordinator_address": address,
        "num_processes": int(count),
        "process_id": int(index),
        "cluster_detection_method": "deactivate",
    }
