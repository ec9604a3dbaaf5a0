"""Compare a sweep with a loop over the same trials; measure the time and the memory.

    python -m experiments.benchmarks.sweep pair     # adds a paired measurement
    python -m experiments.benchmarks.sweep scale    # 1,000 to 100,000 trials, saved to a folder
    python -m experiments.benchmarks.sweep picture

The trial function is the one of `experiments.paper.hidden_dim`. A paired measurement runs 100 seeds
at 12 widths twice: with `sweep.run`, and with a loop that calls a jitted function once per trial.
The loop compiles one program per width, without padding, and waits for results only after all seeds
of a width. The sweep has two simulated devices, one per core; the loop has one device, whose work
XLA may distribute over both cores. All measurements and their medians are written to
results/sweep.json. The command `pair` takes one or two minutes on two cores, during which no other
program should run.
"""

import argparse
import hashlib
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
    """Return the trial function of the experiment `hidden-dim`."""
    import jax

    from experiments.paper import hidden_dim

    jax.config.update("jax_enable_x64", hidden_dim.FLOAT64)
    config = hidden_dim.Config(target=("trained",))
    targets = hidden_dim.make_targets(config)
    x = hidden_dim.test_sequences(config.test_sequences, config.length, config.target_seed)
    return hidden_dim.make_trial(targets, x, config.construction)


def batched() -> dict[str, Any]:
    """Run all trials by `sweep.run`; return the times, and a checksum of every trial's masks."""
    from slth_jax import sweep

    trial, begin = make_trial(), time.perf_counter()
    results = sweep.run(
        trial,
        seeds=SEEDS,
        grid={"source": ["theory"], "width": WIDTHS},
        padded=["width"],
        buckets="largest",  # as in the experiment
    )
    total = time.perf_counter() - begin
    masks = [
        _checksum(results.arrays(index), results.row(index)["width"])
        for index in range(len(results))
    ]
    # total - run is the time of tracing and compiling, here and in `one_by_one`.
    return {"total": total, "run": results.run_seconds, "masks": masks}


def one_by_one() -> dict[str, Any]:
    """Run all trials in a loop; return the times, and a checksum of every trial's masks."""
    import jax

    trial, run, tickets = make_trial(), 0.0, []
    begin = time.perf_counter()
    for width in WIDTHS:
        hparams = {"source": "theory", "width": width, "width_max": width}
        keys = [jax.random.key(seed, impl="threefry2x32") for seed in range(SEEDS)]
        jitted = jax.jit(lambda key, hparams=hparams: trial(key, hparams))
        single = jitted.lower(keys[0]).compile()
        start = time.perf_counter()
        outputs = jax.block_until_ready([single(key) for key in keys])
        run += time.perf_counter() - start
        tickets += [(vars(masks), width) for _, masks in outputs]
    total = time.perf_counter() - begin
    return {"total": total, "run": run, "masks": [_checksum(*pair) for pair in tickets]}


def _checksum(masks: dict[str, Any], width: int) -> str:
    """Return a checksum of a trial's masks, from which padding is removed."""
    import numpy as np

    parts = [
        np.asarray(mask)[:, :width] if name == "w_o" else np.asarray(mask)[..., :width]
        for name, mask in sorted(masks.items())
    ]
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()[:8]


def pair(first: str) -> dict[str, Any]:
    """Time sweep and loop in separate processes, starting with `first`; compare the masks."""
    ways = sorted(("batched", "one_by_one"), key=lambda way: way != first)
    times = {way: _alone(way, devices=2 if way == "batched" else 1) for way in ways}
    masks = [times[way].pop("masks") for way in ways]
    return {
        "first": first,
        **times,
        "trials": len(masks[0]),
        "trials_with_equal_masks": sum(map(str.__eq__, *masks)),
        "ratio_with_compilation": times["one_by_one"]["total"] / times["batched"]["total"],
        "ratio_without": times["one_by_one"]["run"] / times["batched"]["run"],
    }


def scale(count: int) -> dict[str, Any]:
    """Run a sweep of `count` trials and save it to disk; return its time and its peak memory."""
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


def _alone(what: str, *, devices: int = 1) -> dict[str, Any]:
    """Run a measurement in a separate process and return the JSON that it prints."""
    command = [sys.executable, "-m", "experiments.benchmarks.sweep", "one", what]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def picture(results: dict[str, Any]) -> Any:
    """Plot time and memory against the number of trials."""
    from experiments import plots

    rows = results["scale"]
    trials = [row["trials"] for row in rows]
    seconds = [row["seconds"] - row["compile_seconds"] for row in rows]
    figure, (left, right) = plots.two(7.6, 4.2)
    left.loglog(trials, seconds, "o-", color=plots.COLORS[0], label="measured, without compiling")
    slope = seconds[-1] / trials[-1]
    linear = [slope * count for count in trials]
    left.loglog(
        trials, linear, ":", color=plots.PAPER, label=f"line of {1e3 * slope:.2f} ms per trial"
    )
    left.set_xlabel("trials")
    left.set_ylabel("seconds")
    plots.legend_below(left)
    right.semilogx(trials, [row["peak_mib"] for row in rows], "o-", color=plots.COLORS[0])
    right.set_ylim(0, 1.2 * max(row["peak_mib"] for row in rows))
    right.set_xlabel("trials")
    right.set_ylabel("peak memory of the process, MiB")
    figure.suptitle("A sweep over trials of figure 4, width 12, saved in chunks")
    return figure


def summarize(results: dict[str, Any]) -> dict[str, Any]:
    """Return the medians over the paired measurements."""
    pairs = results.get("pairs", [])
    names = ("ratio_with_compilation", "ratio_without")
    medians: dict[str, Any] = {n: statistics.median(p[n] for p in pairs) for n in names if pairs}
    for way in ("batched", "one_by_one") if pairs else ():
        medians[way] = {n: statistics.median(p[way][n] for p in pairs) for n in ("total", "run")}
    return medians


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("pair", "scale", "picture", "one"))
    parser.add_argument("which", nargs="*", help="with scale: numbers of trials")
    options = parser.parse_args()
    if options.what == "one":
        which = options.which[0]
        ways = {"batched": batched, "one_by_one": one_by_one}
        print(json.dumps(ways[which]() if which in ways else scale(int(which))))
        return

    import jax

    from slth_jax import storage

    path = RESULTS / "sweep.json"
    results = storage.read_json(path) if path.exists() else {}
    pairs = results.setdefault("pairs", [])
    if options.what == "pair":
        pairs.append(pair(("batched", "one_by_one")[len(pairs) % 2]))
    elif options.what == "scale":
        rows = {row["trials"]: row for row in results.get("scale", [])}
        counts = [int(count) for count in options.which] or COUNTS
        rows |= {count: _alone(str(count), devices=2) for count in counts}
        results["scale"] = [rows[count] for count in sorted(rows)]
    results["medians"] = summarize(results)
    results["machine"] = {"cores": os.cpu_count(), "cpu": platform.processor() or "unknown"}
    results["versions"] = {"jax": jax.__version__, "python": platform.python_version()}
    storage.write_json(storage.make_folder(RESULTS) / "sweep.json", results)
    if results.get("scale"):
        from experiments import plots

        plots.save(picture(results), RESULTS / "sweep.png")
    print(json.dumps(results["medians"], indent=1))


if __name__ == "__main__":
    main()
