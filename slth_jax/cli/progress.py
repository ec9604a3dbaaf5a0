"""Show progress: on a terminal as a bar, otherwise as lines with date and time."""

import contextlib
import datetime
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping

_PAUSE = 30.0  # seconds between two lines


@contextlib.contextmanager
def bar(title: str, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Yield a function `update(done, total)` that shows progress on standard error."""
    if quiet or sys.stderr is None:
        yield lambda done, total: None
    elif not sys.stderr.isatty():
        yield _lines(title)
    else:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True)) as shown:
            task = shown.add_task(title, total=None)
            yield lambda done, total: shown.update(task, completed=done, total=total)


def log(message: str) -> None:
    """Write a line with the time of day to standard error."""
    if sys.stderr is not None:
        print(f"{datetime.datetime.now():%Y-%m-%d %H:%M:%S} {message}", file=sys.stderr, flush=True)


def log_start(name: str, versions: Mapping[str, str], folder: str) -> None:
    """Write the first line of a log: versions, devices, processes, host, folder."""
    import jax

    machine = f"{jax.device_count()} x {jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores"
    processes = f"process {jax.process_index()} of {jax.process_count()} on {socket.gethostname()}"
    words = ", ".join(f"{package} {version}" for package, version in versions.items())
    log(f"{name}: {words}; {machine}; {processes}; {folder}")


def _lines(title: str) -> Callable[[int, int], None]:
    """Return `update(done, total)`, which writes a line at the start, every 30 s and at the end."""
    start, written, first = time.monotonic(), -float("inf"), 0

    def update(done: int, total: int) -> None:
        nonlocal written, first
        now = time.monotonic()
        if written < 0:
            first = done  # done before this call
        elif now - written < _PAUSE and done < total:
            return
        written = now
        rate = (done - first) / max(now - start, 1e-9)
        left = f", {datetime.timedelta(seconds=round((total - done) / rate))} left" if rate else ""
        log(f"{title}: {done:,} of {total:,}{left if done < total else ''}")

    return update
