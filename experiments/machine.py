"""This machine: what it is, how fast it is, and what sweeps would cost on it."""

import datetime
import math
import os
import platform
import time
from collections.abc import Iterable

import jax
import jax.numpy as jnp

from experiments.folder import Sweep
from slth_jax import __version__, sweep
from slth_jax.cli.memory import peak_bytes


def versions() -> dict[str, str]:
    """Return the versions that results may depend on."""
    return {
        "slth_jax": __version__,
        "jax": jax.__version__,
        "python": platform.python_version(),
    }


def device() -> str:
    """Return the devices in words."""
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores"


def now() -> dict[str, object]:
    """Return date, versions and devices, as results keep them."""
    return {"date": datetime.date.today().isoformat(), **versions(), "device": device()}


def products_per_second(size: int = 1024, dtype: str = "float32") -> float:
    """Measure the floating-point operations a second of matrix products on one device."""
    x = jnp.ones((size, size), dtype)
    product = jax.jit(lambda x: x @ x)
    product(x).block_until_ready()
    begin, count = time.perf_counter(), 0
    while count < 3 or time.perf_counter() - begin < 0.2:
        product(x).block_until_ready()
        count += 1
    return count * 2 * size**3 / (time.perf_counter() - begin)


def duration(seconds: float) -> str:
    """Return a time in the unit that suits it."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"


def cost(sweeps: Iterable[Sweep], seeds: int) -> str:
    """Run one batch of each sweep at its largest size, and return the estimate for all of it.

    Time grows with the number of trials beside what is compiled; memory is this process's, and
    does not grow with them.
    """
    lines, total = [], 0.0
    for one in sweeps:
        count = seeds * math.prod(map(len, one.grid.values()))
        # One point, the largest sizes: all programs of the sweep are as this one.
        point = {
            name: (max(values) if name in one.padded else values[0],)
            for name, values in one.grid.items()
        }
        probed = min(count, (one.batch or 16) * jax.device_count())
        done = sweep.run(one.trial, seeds=probed, **one.options() | {"grid": point})
        # Every combination of the other values has its own program.
        compiled = math.prod(
            len(values) for name, values in one.grid.items() if name not in one.padded
        )
        seconds = done.compile_seconds * compiled + done.run_seconds * count / probed
        total += seconds
        lines.append(
            f"  {one.what}: {count:,} trials at {1e3 * done.run_seconds / probed:.3g} ms, "
            f"compiling {done.compile_seconds:.1f} s"
        )
    lines.append(
        f"  about {duration(total)} and {peak_bytes() / 2**30:.1f} GiB of memory on this machine "
        f"({device()}): an estimate from {'these probes' if len(lines) > 1 else 'this probe'}, "
        "without tables, guarantees and figures"
    )
    return "\n".join(lines)
