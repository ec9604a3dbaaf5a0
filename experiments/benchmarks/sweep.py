"""Trials in batches against trials one after another, and time and memory against their number.

    python -m experiments.benchmarks.sweep pair     # adds one paired measurement
    python -m experiments.benchmarks.sweep scale    # 1,000 to 100,000 trials, saved to a folder
    python -m experiments.benchmarks.sweep picture

The trials are those of `experiments.hidden_dim`. A pair is 100 seeds at 12 widths, through
`sweep.run` and through a loop of single jitted trials that compiles once a width, at its true
width, and waits for nothing but the end. Measurements collect in results/sweep.json, medians with
them. `pair` wants the machine for itself for some two minutes on two cores.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
SEEDS, WIDTHS = 100, tuple(range(4, 93, 8))
COUNTS = (1_000, 3_000, 10_000, 30_000, 100_000)


def make_trial() -> Any:
    """Return the hidden-dim experiment's trial."""
    import jax

    from experiments import hidden_dim

    jax.config.update("jax_enable_x64", hidden_dim.FLOAT64)
    config = hidden_dim.Config()
    target = hidden_dim.make_target(config)
    x = hidden_dim.test_inputs(target, config.test_sequences, config.length, config.target_seed)
    return hidden_dim.make_trial(target, x, config.construction)


def batched(trial: Any) -> tuple[dict[str, float], Any]:
    """Return the times of the sweep, and its results."""
    from slth_jax import sweep

    begin = time.perf_counter()
    results = sweep.run(
        trial,
        seeds=SEEDS,
        grid={"source": ["theory"], "width": WIDTHS},
        padded=["width"],
    )
    total = time.perf_counter() - begin
    # Tracing is part of compiling here, as it is in the loop.
    return {"total": total, "run": results.run_seconds}, results


def one_by_one(trial: Any) -> tuple[dict[str, float], list[Any]]:
    """Return the times of the loop, and its results."""
    import jax

    run, outputs = 0.0, []
    begin = time.perf_counter()
    for width in WIDTHS:
        hparams = {"source": "theory", "width": width, "width_max": width}
        keys = [jax.random.key(seed, impl="threefry2x32") for seed in range(SEEDS)]
        jitted = jax.jit(lambda key, hparams=hparams: trial(key, hparams))
        single = jitted.lower(keys[0]).compile()
        start = time.perf_counter()
        outputs += jax.block_until_ready([single(key) for key in keys])
        run += time.perf_counter() - start
    return {"total": time.perf_counter() - begin, "run": run}, outputs


def pair(first: str) -> dict[str, Any]:
    """Return one paired measurement, and how far the two results agree."""
    import numpy as np

    trial = make_trial()
    ways = {"batched": batched, "one_by_one": one_by_one}
    order = sorted(ways, key=lambda way: way != first)
    times, results = {}, {}
    for way in order:
        times[way], results[way] = ways[way](trial)
    same = 0
    for index, (_, masks) in enumerate(results["one_by_one"]):
        arrays = results["batched"].arrays(index)
        parts = [(arrays[name], np.asarray(getattr(masks, name))) for name in masks._fields]
        same += all(
            (wide[tuple(map(slice, narrow.shape))] == narrow).all() for wide, narrow in parts
        )
    return {
        "first": first,
        **times,
        "trials": len(results["one_by_one"]),
        "trials_with_equal_masks": same,
        "ratio_with_compilation": times["one_by_one"]["total"] / times["batched"]["total"],
        "ratio_without": times["one_by_one"]["run"] / times["batched"]["run"],
    }


def scale(count: int) -> dict[str, Any]:
    """Return the time and the peak memory of a sweep of `count` trials into a folder."""
    from slth_jax import sweep

    trial = make_trial()
    before = _peak_mib()
    with tempfile.TemporaryDirectory() as out:
        begin = time.perf_counter()
        results = sweep.run(
            trial,
            seeds=count,
            grid={"source": ["theory"], "width": [12]},
            padded=["width"],
            out=out,
            batch=64,
        )
        total = time.perf_counter() - begin
    return {
        "trials": len(results),
        "seconds": total,
        "compile_seconds": results.compile_seconds,
        "peak_mib": _peak_mib(),
        "peak_before_mib": before,
    }


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _alone(*arguments: str) -> dict[str, Any]:
    """Return what this command prints as JSON in a process of its own."""
    command = [sys.executable, "-m", "experiments.benchmarks.sweep", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw time and memory against the number of trials."""
    from experiments import plots
    from slth_jax import checkpoint

    rows = results["scale"]
    trials = [row["trials"] for row in rows]
    seconds = [row["seconds"] - row["compile_seconds"] for row in rows]
    figure, (left, right) = plots.two(8.4, 3.6)
    left.loglog(trials, seconds, "o-", color=plots.COLORS[0], label="measured, without compiling")
    slope = seconds[-1] / trials[-1]
    linear = [slope * count for count in trials]
    left.loglog(trials, linear, ":", color=plots.PAPER, label=f"{1e3 * slope:.2f} ms a trial")
    left.set_xlabel("trials")
    left.set_ylabel("seconds")
    left.legend(frameon=False)
    right.semilogx(trials, [row["peak_mib"] for row in rows], "o-", color=plots.COLORS[0])
    right.set_ylim(bottom=0)
    right.set_xlabel("trials")
    right.set_ylabel("peak memory of the process, MiB")
    figure.suptitle("hidden-dim trials of width 12, results saved in chunks")
    for kind in ("png", "svg"):
        with checkpoint.writing(path.with_suffix(f".{kind}")) as file:
            figure.savefig(file, format=kind, dpi=160)


def summarize(results: dict[str, Any]) -> dict[str, Any]:
    """Return the medians over the pairs."""
    pairs = results.get("pairs", [])
    names = ("ratio_with_compilation", "ratio_without")
    medians: dict[str, Any] = {n: statistics.median(p[n] for p in pairs) for n in names if pairs}
    for way in ("batched", "one_by_one") if pairs else ():
        medians[way] = {n: statistics.median(p[way][n] for p in pairs) for n in ("total", "run")}
    return medians


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("pair", "scale", "picture"))
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS)
    parser.add_argument("--one", help=argparse.SUPPRESS)  # what a process of its own measures
    options = parser.parse_args()
    if options.one:
        print(json.dumps(pair(options.one) if options.what == "pair" else scale(int(options.one))))
        return

    import jax

    from slth_jax import checkpoint

    path = RESULTS / "sweep.json"
    results = checkpoint.read_json(path) if path.exists() else {}
    pairs = results.setdefault("pairs", [])
    if options.what == "pair":
        pairs.append(_alone("pair", "--one", ("batched", "one_by_one")[len(pairs) % 2]))
    elif options.what == "scale":
        rows = {row["trials"]: row for row in results.get("scale", [])}
        rows |= {count: _alone("scale", "--one", str(count)) for count in options.counts}
        results["scale"] = [rows[count] for count in sorted(rows)]
    results["medians"] = summarize(results)
    results["machine"] = {"cores": os.cpu_count(), "cpu": platform.processor() or "unknown"}
    results["versions"] = {"jax": jax.__version__, "python": platform.python_version()}
    checkpoint.write_json(checkpoint.make_folder(RESULTS) / "sweep.json", results)
    if results.get("scale"):
        draw(results, RESULTS / "sweep")
    print(json.dumps(results["medians"], indent=1))


if __name__ == "__main__":
    main()
