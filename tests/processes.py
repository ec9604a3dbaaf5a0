"""Several processes of one run, started together on this machine."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]


def free_port() -> int:
    """Return a port that no process uses."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def start(
    arguments: Callable[[int, int], Sequence[str]], count: int, devices: int
) -> list[subprocess.Popen]:
    """Start `count` Python processes with ``arguments(index, port)``, each of so many devices."""
    port = free_port()
    # Programs of several processes are not shared with programs of a single process.
    no_cache = {"JAX_ENABLE_COMPILATION_CACHE": "0"} if count > 1 else {}
    environment = {
        **os.environ, "JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu", **no_cache,
    }  # fmt: skip
    return [
        subprocess.Popen(
            [sys.executable, *map(str, arguments(index, port))],
            env=environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]


def finish(
    processes: Sequence[subprocess.Popen], seconds: float = 120
) -> tuple[list[int], list[tuple[str, str]]]:
    """Return exit statuses, and the texts (standard output, standard error) of processes."""
    try:
        texts = [process.communicate(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], texts
