"""The processes of one run: joining them, and agreement on values, errors and when to stop."""

import contextlib
import contextvars
import ctypes
import itertools
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax
import numpy as np
from jax._src import distributed as jax_distributed  # its client has no public name
from jax.experimental import multihost_utils

# The status that a shell reports for a process ended by SIGTERM; batch systems read "preempted".
PREEMPTED = 128 + signal.SIGTERM
# The status of a process that ended because another one was lost: EX_TEMPFAIL, "try again".
LOST = 75
# Seconds without a report after which a process counts as lost.
_SILENCE = 25.0
# Milliseconds that a process waits for the others to finish their parts: no limit, since `joined`
# ends every process once another one is lost.
_FOREVER = 30 * 24 * 3600 * 1000
_barriers = itertools.count()
_is_alone = contextvars.ContextVar("alone", default=False)
# Words in errors of collectives and of the coordination service whose other side was lost.
_BROKEN = ("Gloo", "Connection", "coordination", "UNAVAILABLE", "NCCL", "DEADLINE_EXCEEDED")


def on_first(step: Callable[[], Any]) -> Any:
    """Call `step` on the first process; every process returns its value or raises its error.

    Otherwise one process would stop at a full disk and the rest would wait for it forever.
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
    """Let this process work by itself while the block runs: it agrees with no other on anything."""
    before = _is_alone.set(True)
    try:
        yield
    finally:
        _is_alone.reset(before)


def _several() -> bool:
    return jax.process_count() > 1 and not _is_alone.get()


def wait_for_all() -> None:
    """Wait until every process of the run calls this, however long their work takes."""
    if jax.process_count() > 1:
        client: Any = jax_distributed.global_state.client
        client.wait_at_barrier(f"slth/{next(_barriers)}", _FOREVER)


def whole(array: Any) -> np.ndarray:
    """Return an array in NumPy, on every process if it is spread over the processes."""
    if not isinstance(array, jax.Array) or array.is_fully_addressable:
        return np.asarray(array)
    if array.is_fully_replicated:
        return np.asarray(array.addressable_data(0))
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


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
    """Join the processes of one run while the block runs; no process waits for a lost one.

    Each process reports every second that it lives. If another process has failed, or has not
    reported for `_SILENCE` seconds, this one prints a line that names it and ends with the status
    `LOST`. An error in the block ends this process at once, after `report`.

    Args:
      how: 'off' for this process alone; 'on' for the processes that a scheduler (Slurm, MPI, Cloud
        TPU, Kubernetes) describes; 'auto' for these if there are any; or 'HOST:PORT,I/N' for
        process I of N, where process 0 is at HOST:PORT.
      report: prints an error and returns the exit status; None for Python's traceback and 1.

    Raises:
      ValueError: `how` is none of these, or no scheduler describes the processes.
    """
    if how == "off" or jax.distributed.is_initialized():
        yield
        return
    options = _place(how)
    # JAX would swallow SIGTERM: `until_sigterm` handles it.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(**options)
    except ValueError:  # no scheduler was detected
        if how != "auto":
            raise
        yield
        return
    except RuntimeError as error:
        raise ValueError(f"cannot join the processes: {str(error).splitlines()[0]}") from error
    watch = _Watch()
    try:
        yield
        wait_for_all()  # otherwise JAX gives the slower ones five minutes
    except SystemExit as stop:
        if stop.code == PREEMPTED:  # every process raises it
            watch.finished()
            raise
        watch.failed(stop, lambda _: stop.code if isinstance(stop.code, int) else 1)
    except BaseException as error:
        watch.failed(error, report)
    watch.finished()


def print_traceback(error: BaseException) -> int:
    """Print an error as Python does; return the exit status 1."""
    traceback.print_exception(error)
    return 1


def _place(how: str) -> dict[str, Any]:
    """Return the arguments of `jax.distributed.initialize` for a value of `joined`."""
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


class _Watch:
    """Reports that this process lives, and ends it once another one is lost.

    The reports are counters in the key-value store of JAX's coordination service, which process 0
    serves: if the store does not answer, process 0 is lost.
    """

    def __init__(self) -> None:
        self._client: Any = jax_distributed.global_state.client
        self._me, self._count = jax.process_index(), jax.process_count()
        self._stop = threading.Event()
        self._ending = threading.Lock()
        self._on_abort = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda _: self._end(0))
        # JAX aborts, with a trace, when it notices first that process 0 is lost.
        ctypes.CDLL(None).signal(signal.SIGABRT, self._on_abort)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def finished(self) -> None:
        """End the reports of a process that has done its part."""
        self._set(self._me, "finished")
        self._stop.set()
        self._thread.join(10)
        ctypes.CDLL(None).signal(signal.SIGABRT, None)

    def failed(
        self, error: BaseException, report: Callable[[BaseException], int] | None
    ) -> NoReturn:
        """End this process and let the remaining ones end, too."""
        if any(word in str(error) for word in _BROKEN):  # the other side may be lost
            self._thread.join(_SILENCE + 15)  # it ends this process, naming the lost one
        with self._ending:
            status = (report or print_traceback)(error)
            sys.stdout.flush()
            sys.stderr.flush()
            lines = str(error).splitlines() or [type(error).__name__]
            self._set(self._me, f"has failed ({lines[0][:200]})")
            self._exit(status)

    def _exit(self, status: int) -> NoReturn:
        if self._me == 0:  # it serves the store that the remaining processes read
            time.sleep(3)
        # At a normal exit JAX would wait for the remaining processes.
        os._exit(status)

    def _set(self, process: int, state: str) -> None:
        with contextlib.suppress(Exception):  # process 0 may be lost
            self._client.key_value_set(f"slth/state/{process}", state, allow_overwrite=True)

    def _run(self) -> None:
        beats: dict[int, Any] = {}
        changed = dict.fromkeys(range(self._count), time.monotonic())
        while not self._stop.wait(1.0):
            try:
                self._client.key_value_increment(f"slth/beat/{self._me}", 1)
                now = dict(self._client.key_value_dir_get("slth/beat/"))
                states = dict(self._client.key_value_dir_get("slth/state/"))
            except Exception:
                if not self._stop.is_set():
                    self._end(0)
                return
            for other in changed:
                state = states.get(f"slth/state/{other}")
                if now.get(f"slth/beat/{other}") != beats.get(other) or state == "finished":
                    changed[other] = time.monotonic()
                    beats[other] = now.get(f"slth/beat/{other}")
                elif state is not None:
                    self._end(other, state)
                elif time.monotonic() - changed[other] > _SILENCE:
                    self._end(other)

    def _end(self, other: int, state: str = "is lost") -> None:
        """End this process with a line that names the lost one."""
        with self._ending:
            if other != 0:  # the store does not answer without process 0
                self._set(other, state)
            line = f"error: process {other} of {self._count} {state}; the same command continues\n"
            os.write(2, line.encode(errors="replace"))
            self._exit(LOST)
