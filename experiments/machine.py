"""Describe this machine, measure its speed, and estimate the cost of sweeps."""

import datetime
import math
import os
import platform
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments.folder import Sweep
from slth_jax import __version__, sweep
from slth_jax.cli.memory import peak_bytes


def versions() -> dict[str, str]:
    """Return the versions of libraries that results may depend on, and the commit of a clone."""
    named = {
        "slth_jax": __version__,
        "jax": jax.__version__,
        "python": platform.python_version(),
    }
    name = commit()
    return named | {"commit": name} if name else named


def commit() -> str:
    """Return the commit of the git clone that contains this file; '' if there is no clone.

    '+' is appended if files differ from the commit.
    """
    root = str(Path(__file__).parents[1])
    try:
        described = subprocess.run(
            ["git", "-C", root, "describe", "--always", "--dirty=+", "--exclude=*"],
            capture_output=True, text=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""
    return described.stdout.strip()


def device() -> str:
    """Return a description of the devices and the number of CPU cores."""
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores"


def report() -> dict[str, Any]:
    """Return the date, the versions and the devices, which are recorded with every result."""
    return {
        "date": datetime.date.today().isoformat(),
        "versions": versions(),
        "device": device(),
    }


def products_per_second(size: int = 1024, dtype: str = "float32") -> float:
    """Return the measured floating-point operations per second of matrix products on a device."""
    x = jnp.ones((size, size), dtype)
    product = jax.jit(lambda x: x @ x)
    product(x).block_until_ready()
    begin, count = time.perf_counter(), 0
    while count < 3 or time.perf_counter() - begin < 0.2:
        product(x).block_until_ready()
        count += 1
    return count * 2 * size**3 / (time.perf_counter() - begin)


def duration(seconds: float) -> str:
    """Return a duration as text, in days, hours, minutes or seconds."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"


def cost(sweeps: Iterable[Sweep], seeds: int) -> str:
    """Estimate the cost of all sweeps: run one batch of trials per kind, at the largest size.

    The estimated time is the time of all compilations plus the time of all trials. The estimated
    memory is the peak memory of this process, which does not depend on the number of trials.
    """
    kinds: dict[str, list[Sweep]] = {}
    for index, planned in enumerate(sweeps):
        kinds.setdefault(planned.kind or str(index), []).append(planned)
    lines, total = [], 0.0
    for alike in kinds.values():
        planned = max(alike, key=lambda other: other.work)
        scale = sum(other.work for other in alike) / planned.work
        count = seeds * math.prod(map(len, planned.grid.values()))
        # The grid point with the largest sizes; all programs of the sweep are compiled at this
        # size.
        point = {
            name: (max(values) if name in planned.padded else values[0],)
            for name, values in planned.grid.items()
        }
        probed = min(count, (planned.batch or 16) * jax.device_count())
        done = sweep.run(planned.trial, seeds=probed, **planned.options() | {"grid": point})
        # Every combination of values that are not padded needs a separate program.
        compiled = math.prod(
            len(values) for name, values in planned.grid.items() if name not in planned.padded
        )
        run_seconds = done.run_seconds * count / probed
        total += done.compile_seconds * compiled * len(alike) + run_seconds * scale
        others = f"; {len(alike) - 1} more by their work" if len(alike) > 1 else ""
        lines.append(
            f"  {planned.what}: {count:,} trials at {1e3 * done.run_seconds / probed:.3g} ms, "
            f"compiling {done.compile_seconds:.1f} s{others}"
        )
    lines.append(
        f"  about {duration(total)} and {peak_bytes() / 2**30:.1f} GiB of memory on this machine "
        f"({device()}): an estimate from {'these probes' if len(lines) > 1 else 'this probe'}, "
        "without tables, guarantees and figures"
    )
    return "\n".join(lines)


def cost_on(on: str, sweeps: Iterable[Sweep], seeds: int) -> str:
    """Compile the programs of sweeps for a machine such as 'v5e:4x4'; return the reports.

    No program is run. The reported times are lower bounds: they include matrix products and one
    pass over arguments and results, but not the comparisons of subset sums.
    """
    lines: list[str] = []
    total = 0.0
    for planned in sweeps:
        options = planned.options()
        for ahead in sweep.compile_for(on, planned.trial, seeds=seeds, **options):
            lines.append(f"{planned.what}: {ahead.calls} calls of one program")
            lines += ahead.report.lines("give a smaller batch (--set batch=N) or more chips")
            total += ahead.calls * ahead.report.seconds + ahead.report.compile_seconds
    lines.append(f"at least {duration(total)} on {on} in all, compiling as long as here")
    return "\n".join(lines)
