"""Compare this library's solver of subset sums with other solvers on the same problems.

    python -m experiments.benchmarks.subset_sum --preset full --out experiments/benchmarks/results

An instance is one subset sum: n samples and a value. Instances are distributed as in a constructed
ticket: samples = u*v with u, v ~ U[-1, 1] and value ~ U[-0.5, 0.5] in float32. Times include
finding the mask but not compilation. This library and a loop in C run in turn for several rounds.
The results are the median time of each program, and the median over the rounds of the ratio of the
two times. The other solvers solve a few of these instances, one at a time, within a time limit. If
a solver exceeds the limit with a single instance, it is not run at larger n. The time is also
measured against the batch size. The preset `full` also measures the peak memory of a separate
process that solves one million instances, and the published case: 397,000 weights of 21 samples,
for which a commercial solver took 77,266 s on 36 cores. The preset `full` takes about five minutes
on two cores, during which no other program should run.
"""

import argparse
import csv
import datetime
import io
import os

# Make every core a device. This must be set before JAX is imported.
os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(os.cpu_count()))

import functools
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

from experiments.benchmarks import solvers
from slth_jax import storage, subset_sum

OURS, SHARDED, LOOP = "slth_jax", "slth_jax, sharded", "C two-pointer"


class Preset(NamedTuple):
    """The number of instances, of samples per instance and of repetitions of a measurement."""

    sizes: tuple[int, ...]  # numbers n of samples
    rounds: int
    seconds: float  # seconds per other solver and n
    instances: int  # instances per other solver and n, at most
    large: bool  # whether to measure the large cases


PRESETS = {
    "quick": Preset((8, 16, 20), 3, 2.0, 3, False),
    "full": Preset((8, 12, 16, 18, 20, 22, 24, 27, 30), 7, 5.0, 5, True),
}


def draw(batch: int, n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw a batch of subset sums: return `samples[batch, n]` and `value[batch]`."""
    rng = np.random.default_rng(seed)
    samples = rng.uniform(-1, 1, (batch, n)) * rng.uniform(-1, 1, (batch, n))
    return samples.astype(np.float32), rng.uniform(-0.5, 0.5, batch).astype(np.float32)


def timed(call: Callable[[], Any]) -> float:
    """Call a function and return the seconds that it takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def ours(
    samples: np.ndarray, value: np.ndarray, *, devices: int = 1
) -> Callable[[], subset_sum.Solution]:
    """Copy instances to the devices; return a compiled function that solves these instances."""
    mesh = jax.make_mesh(
        (devices,), ("instance",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
    )
    placed = jax.device_put((samples, value), jax.NamedSharding(mesh, jax.P("instance")))
    exact = max(24, samples.shape[1])

    def call() -> subset_sum.Solution:
        return jax.block_until_ready(subset_sum.solve(*placed, max_exact=exact))

    call()
    return call


def sizes(preset: Preset) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Measure all solvers; return a dict per solver and n, and why other solvers cannot be used."""
    missing, others = {}, {}
    for name, make in solvers.ALL.items():
        try:
            others[name] = make()
        except solvers.Missing as reason:
            missing[name] = str(reason)
    loop = others.pop(LOOP, None)
    rows = []
    for n in preset.sizes:
        # This library needs some tenths of a second for this many instances, a multiple of two
        # tiles.
        batch = max(128, int(2 ** (27 - n / 2) / n) // 128 * 128)
        samples, value = draw(batch, n)
        calls: dict[str, Callable[[], Any]] = {OURS: ours(samples, value)}
        if jax.device_count() > 1:
            calls[SHARDED] = ours(samples, value, devices=jax.device_count())
        our_error = solvers.error_of(samples, value, np.asarray(calls[OURS]().mask))
        errors = dict.fromkeys(calls, our_error)
        if loop is not None:
            calls[LOOP] = functools.partial(loop, samples, value)
            errors[LOOP] = loop(samples, value)
        rounds = [{name: timed(call) for name, call in calls.items()} for _ in range(preset.rounds)]
        for name in calls:
            row = _row(name, n, [times[name] / batch for times in rounds], errors[name], our_error)
            if loop is not None:
                ratios = [times[name] / times[LOOP] for times in rounds]
                row["of_loop"] = statistics.median(ratios)
            rows.append(row)
        for name in list(others):
            seconds: list[float] = []
            least: list[float] = []
            while len(seconds) < preset.instances and sum(seconds) < preset.seconds:
                instance = slice(len(seconds), len(seconds) + 1)
                start = time.perf_counter()
                least.append(float(others[name](samples[instance], value[instance])[0]))
                seconds.append(time.perf_counter() - start)
            rows.append(_row(name, n, seconds, np.array(least), our_error))
            if max(seconds) > preset.seconds:
                del others[name]
        print(_line(rows, n), flush=True)
    return rows, missing


def _row(
    name: str, n: int, seconds: list[float], error: np.ndarray, our_error: np.ndarray
) -> dict[str, Any]:
    return {
        "solver": name,
        "n": n,
        "instances": error.size,
        "seconds": statistics.median(seconds),
        "mean_error": float(np.mean(error)),
        "max_error": float(np.max(error)),
        # The largest value, over the instances, of this library's error minus this solver's error.
        "ours_worse_by": float(np.max(our_error[: error.size] - error)),
        "of_loop": "",
    }


def _line(rows: list[dict[str, Any]], n: int) -> str:
    parts = [f"{row['solver']} {_duration(row['seconds'])}" for row in rows if row["n"] == n]
    return f"n = {n:2d}: " + ", ".join(parts)


def _duration(seconds: float) -> str:
    units = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
    unit = next((unit for unit, scale in units.items() if seconds >= scale), "us")
    return f"{seconds / units[unit]:.3g} {unit}"


def batches(n: int, largest: int, rounds: int) -> list[dict[str, Any]]:
    """Return the seconds that this library needs for batches of increasing size."""
    rows = []
    batch = 64
    while batch <= largest:
        call = ours(*draw(batch, n))
        rows.append(
            {
                "n": n,
                "batch": batch,
                "seconds": statistics.median(timed(call) for _ in range(rounds)),
            }
        )
        batch *= 4
    return rows


def published() -> dict[str, Any]:
    """Time this library on the published case; return its seconds and the published seconds."""
    samples, value = draw(397_000, 21)
    call = ours(samples, value)
    return {
        "what": "397,000 weights of 21 samples",
        "seconds": timed(call),
        "published_seconds": 77_266,
        "published_cores": 36,
        "max_error": float(np.max(call().error)),
    }


def million() -> dict[str, Any]:
    """Solve a million instances of 16 samples in a new process; return time and peak memory."""
    code = "from experiments.benchmarks import subset_sum as s; s.print_million()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, peak = done.stdout.split()[-2:]
    return {"batch": 10**6, "n": 16, "seconds": float(seconds), "peak_gib": float(peak)}


def print_million() -> None:
    """Solve a million instances of 16 samples; print the seconds and the peak memory in GiB."""
    call = ours(*draw(10**6, 16))
    print(timed(call), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


def bandwidth(n: int, *, copied: int = 2**27, batch: int | None = None) -> dict[str, Any]:
    """Return the rate in instances per second, and the limit that memory bandwidth sets to it.

    The bandwidth is measured with a copy of `copied` words. The limit applies to a program that
    neither fuses its merge stages nor uses a cache. In each of n/2 + 1 merge stages, such a program
    reads and writes the merged list (2^(n/2 + 1) numbers of 4 bytes) once.
    """
    words = jnp.zeros(copied, jnp.int32)
    copy = jax.jit(lambda x: x + 1)
    jax.block_until_ready(copy(words))
    copying = statistics.median(timed(lambda: jax.block_until_ready(copy(words))) for _ in range(5))
    bytes_a_second = 2 * words.nbytes / copying
    batch = batch or max(4096, int(2 ** (30 - n / 2) / n))
    call = ours(*draw(batch, n))
    rate = batch / statistics.median(timed(call) for _ in range(5))
    limit = bytes_a_second / (8 * 2 ** (n // 2 + 1) * (n // 2 + 1))
    return {
        "n": n,
        "instances_per_second": rate,
        "gigabytes_per_second": bytes_a_second / 1e9,
        "unfused_limit": limit,
        "of_limit": rate / limit,
    }


def picture(rows: list[dict[str, Any]], growth: list[dict[str, Any]]) -> Any:
    """Plot the time per instance against n, and the time of a batch against the batch size."""
    from experiments import plots

    drawing, (left, right) = plots.two(7.6, 4.8)
    names = list(dict.fromkeys(row["solver"] for row in rows))
    colors = dict(zip([name for name in names if name != SHARDED], plots.COLORS, strict=False))
    for name in names:
        points = [(row["n"], row["seconds"]) for row in rows if row["solver"] == name]
        look = "o-" if name in colors else "o:"
        fill = colors.get(name, "white")
        color = colors.get(name, colors[OURS])
        left.plot(*zip(*points, strict=True), look, ms=4, mfc=fill, color=color, label=name)
    handles = left.get_legend_handles_labels()
    drawing.legend(*handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    ours_by_n = [(row["n"], row["seconds"]) for row in rows if row["solver"] == OURS]
    law = np.exp(np.mean([np.log(t / (2 ** (n / 2) * n)) for n, t in ours_by_n if n >= 12]))
    n_axis = np.linspace(ours_by_n[0][0], ours_by_n[-1][0], 50)
    left.plot(n_axis, law * 2 ** (n_axis / 2) * n_axis, "--", color="#777777", lw=1, zorder=1)
    left.annotate(
        "$2^{n/2}\\,n$",
        (n_axis[3], law * 2 ** (n_axis[3] / 2) * n_axis[3]),
        xytext=(4, -14),
        textcoords="offset points",
        color="#777777",
    )
    left.set(yscale="log", xlabel="samples n", ylabel="seconds per instance")
    left.set_xticks([n for n, _ in ours_by_n if n % 4 == 0])
    x = np.array([row["batch"] for row in growth], float)
    y = np.array([row["seconds"] for row in growth])
    right.plot(x, y, "o-", ms=4, lw=1.4, color=plots.COLORS[0])
    right.plot(x, y[-1] / x[-1] * x, "--", color="#777777", lw=1, zorder=1)
    right.annotate(
        "linear",
        (x[1], y[-1] / x[-1] * x[1]),
        xytext=(8, -6),
        textcoords="offset points",
        color="#777777",
    )
    right.set(xscale="log", yscale="log", xlabel=f"instances of n = {growth[0]['n']} samples")
    right.set_ylabel("seconds")
    drawing.suptitle("Time of subset sums: left per instance, right for many at once")
    return drawing


def machine() -> dict[str, Any]:
    """Return the processor, the cores, the device, the versions and the date."""
    names = ("jax", "jaxlib", "numpy", "scipy", "gurobipy", "ortools")
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    processor = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((x.split(":")[1].strip() for x in lines if "model name" in x), processor)
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "device": jax.devices()[0].device_kind,
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "versions": versions,
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure all solvers, print the results, and write `subset_sum.{csv,json,png}`."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.subset_sum",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--preset", choices=PRESETS, default="quick")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"))
    options = parser.parse_args(arguments)
    preset = PRESETS[options.preset]
    options.out.mkdir(parents=True, exist_ok=True)
    result = machine()
    print(f"{result['processor']}, {result['cores']} cores, {result['device']}")
    rows, missing = sizes(preset)
    for name, reason in missing.items():
        print(f"skipped {name}: {reason}")
    growth = batches(16, 2**20 if preset.large else 2**14, preset.rounds)
    result |= {"preset": options.preset, "skipped": missing, "rows": rows, "batches": growth}
    if preset.large:
        result |= {"published": published(), "million": million()}
        # On a CPU the lists stay in caches, so the memory bandwidth sets no limit.
        if jax.default_backend() != "cpu":
            result["bandwidth"] = bandwidth(20)
        print(f"published case: {result['published']['seconds']:.1f} s")
        print(f"one million at n = 16: {result['million']['peak_gib']:.2f} GiB")
    for row in rows:
        if row["of_loop"] and row["solver"] != LOOP:
            print(f"{row['solver']}, n = {row['n']}: {row['of_loop']:.2f} of the C loop's time")
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    storage.write_bytes(options.out / "subset_sum.csv", text.getvalue().encode())
    storage.write_json(options.out / "subset_sum.json", result)
    from experiments import plots

    plots.save(picture(rows, growth), options.out / "subset_sum.png")
    print(f"written to {options.out}/subset_sum.csv, .json, .png")


if __name__ == "__main__":
    main()
