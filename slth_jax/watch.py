"""End this process with a message once another process of the run is lost."""

import contextlib
import ctypes
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from jax._src import distributed as jax_distributed  # the client has no public name

# The exit status that a shell reports for a process ended by SIGTERM. Batch systems interpret it as
# "preempted".
PREEMPTED = 128 + signal.SIGTERM
# The exit status of a process that ended because another process was lost: EX_TEMPFAIL, "try
# again".
LOST = 75
# A process counts as lost after this many seconds without a report, or after fewer seconds once a
# connection has broken.
_SILENCE, _SILENCE_AFTER_BREAK = 25.0, 5.0
# Seconds for which processes that end because of SIGTERM wait for each other.
_GRACE = 10.0
_FINISHED, _STOPPED = "has finished", "has ended by SIGTERM"
# Words in the errors that collectives and the coordination service raise if their other side is
# lost.
_BROKEN = ("gloo", "nccl", "connection", "coordination", "barrier", "unavailable", "deadline")


class Watch:
    """Report regularly that this process is alive; end this process once another process is lost.

    The reports are counters in the key-value store of JAX's coordination service. Process 0 serves
    the store, so process 0 counts as lost if the store does not answer. JAX itself aborts with a
    C++ stack trace if process 0 is lost. To suppress the stack trace, the constructor of `Watch`
    installs a handler of SIGABRT.

    Args:
      joining: the number of seconds after which JAX aborts if not all processes have joined.
    """

    def __init__(self, joining: float) -> None:
        self._joining, self._begin = joining, time.monotonic()
        self._silence = _SILENCE
        self._stop = threading.Event()
        self._ending = threading.Lock()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._on_abort = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda _: self._aborted())
        ctypes.CDLL(None).signal(signal.SIGABRT, self._on_abort)

    def start(self) -> None:
        """Start the thread that reports and watches; call this after all processes have joined.

        The index and the number of processes are not read through JAX's public functions, which
        would first exchange the devices of all processes and would wait for a lost process.
        """
        state = jax_distributed.global_state
        self._client: Any = state.client
        self._me, self._count = state.process_id, state.num_processes
        self._thread.start()

    def cancel(self) -> None:
        """Restore the default action of SIGABRT."""
        ctypes.CDLL(None).signal(signal.SIGABRT, None)

    def finished(self) -> None:
        """Leave the run; call this after all processes have finished their parts."""
        self._set(self._me, _FINISHED)
        self._leave()

    def stopped(self) -> None:
        """Leave the run after SIGTERM, or exit if another process does not leave within 8 s."""
        self._set(self._me, _STOPPED)
        until = time.monotonic() + _GRACE - 2
        with contextlib.suppress(Exception):  # process 0 may have ended
            while list(self._states().values()).count(_STOPPED) < self._count:
                if time.monotonic() > until:
                    break
                time.sleep(0.1)
            else:
                self._leave()
                return
        with self._ending:
            self._exit(PREEMPTED)

    def _leave(self) -> None:
        self._stop.set()
        self._thread.join(10)
        # A normal exit is avoided, because JAX would then wait for all processes to end.
        jax_distributed.shutdown()
        self.cancel()

    def failed(
        self, error: BaseException, report: Callable[[BaseException], int] | None
    ) -> NoReturn:
        """End this process after an error, and make the remaining processes end too."""
        if any(word in str(error).lower() for word in _BROKEN):
            # If another process is lost, the thread ends this process with a message.
            self._silence = _SILENCE_AFTER_BREAK
            self._thread.join(_SILENCE_AFTER_BREAK + 10)
        with self._ending:
            try:
                status = (report or print_traceback)(error)
            except BaseException as unexpected:
                status = print_traceback(unexpected)
            lines = str(error).splitlines() or [type(error).__name__]
            self._set(self._me, f"has failed ({lines[0][:200]})")
            self._exit(status)

    def _exit(self, status: int) -> NoReturn:
        with contextlib.suppress(Exception):  # such as a full disk or a closed pipe
            sys.stdout.flush()
            sys.stderr.flush()
        if self._me == 0:  # process 0 serves the store that all others read
            time.sleep(3)
        # A normal exit is avoided, because JAX would then wait for the remaining processes.
        os._exit(status)

    def _set(self, process: int, state: str) -> None:
        with contextlib.suppress(Exception):  # process 0 may be lost
            self._client.key_value_set(f"slth/state/{process}", state, allow_overwrite=True)

    def _states(self) -> dict[str, str]:
        return dict(self._client.key_value_dir_get("slth/state/"))

    def _run(self) -> None:
        beats: dict[int, Any] = {}
        states: dict[str, str] = {}
        changed = dict.fromkeys(range(self._count), time.monotonic())
        while not self._stop.wait(1.0):
            try:
                self._client.key_value_increment(f"slth/beat/{self._me}", 1)
                now = dict(self._client.key_value_dir_get("slth/beat/"))
                states = self._states()
            except Exception:
                if not self._stop.is_set():
                    self._end(0, states.get("slth/state/0"))
                return
            stops = states.get(f"slth/state/{self._me}") == _STOPPED
            for other in changed:
                state, beat = states.get(f"slth/state/{other}"), now.get(f"slth/beat/{other}")
                silent = time.monotonic() - changed[other]
                if stops or state == _FINISHED or (state is None and beat != beats.get(other)):
                    changed[other], beats[other] = time.monotonic(), beat
                elif silent > (_GRACE if state == _STOPPED else 0 if state else self._silence):
                    self._end(other, state)

    def _aborted(self) -> None:
        """Handle SIGABRT, which JAX raises to abort: end this process without a stack trace."""
        state = jax_distributed.global_state
        me, count = state.process_id, state.num_processes
        others = "process 1" if count == 2 else "another process"
        waited = time.monotonic() - self._begin
        if self._thread.ident is not None:  # all processes have joined
            with self._ending:
                _print(f"{'process 0' if me else others} of {count} is lost")
                self._exit(LOST)
        # Not all processes have joined. The connection to process 0 broke, or the time is over.
        over = waited > self._joining - 1
        who = others if over and (me == 0 or _answers(state.coordinator_address)) else "process 0"
        words = f"did not join within {waited:.0f} s (SLTH_JOIN_SECONDS)" if over else "is lost"
        _print(f"{who} of {count} {words}")
        os._exit(LOST)

    def _end(self, other: int, state: str | None = None) -> None:
        """Print a line that names the lost process `other`, and end this process."""
        with self._ending:
            state = state or "is lost"
            if other != 0:  # the store does not answer without process 0
                self._set(other, state)
            _print(f"process {other} of {self._count} {state}")
            self._exit(PREEMPTED if state == _STOPPED else LOST)


def print_traceback(error: BaseException) -> int:
    """Print an error as Python does; return the exit status 1."""
    traceback.print_exception(error)
    return 1


def _print(words: str) -> None:
    os.write(2, f"error: {words}; the same command continues\n".encode(errors="replace"))


def _answers(address: str | None) -> bool:
    """Return whether a server answers at 'HOST:PORT'."""
    host, _, port = (address or "").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=3).close()
    except (OSError, ValueError):
        return False
    return True
