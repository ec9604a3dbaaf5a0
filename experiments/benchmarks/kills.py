"""Kill runs by SIGKILL at random times, resume them, and compare them with undisturbed runs.

    python -m experiments.benchmarks.kills [--only sweep,'figure 4'] [--kills 25] [--seed 0]

`killed_work` defines the runs. A run is killed and resumed until it ends. Then its results (rows,
masks, tickets, figures) must be equal, bit for bit, to the results of an undisturbed run. If the
required number of kills is not reached, another run begins in a new folder. Each process is killed
at a random time after its imports, at most as late as an undisturbed run would end. With
probability 1/2 the process is killed only when its next save begins, so that some kills interrupt a
save.

If a run has several processes, a process is chosen at random and killed at a random time after its
start. Every other process must end within a minute. If another process fails, the last line of its
error output must name the killed process. After the run is resumed, its results must be equal, bit
for bit, to the results of a single process. ``--save`` adds the number of kills to
``results/kills.json``, which also contains the numbers for other runs and seeds.
"""

import argparse
import json
import math
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.benchmarks.killed_work import CHUNK, WORK, begun_trials, write_inputs
from slth_jax.distributed import LOST

RESULTS = Path(__file__).parent / "results" / "kills.json"


def _start(name: str, out: Path, inputs: Path, *, alone: bool = False) -> list[subprocess.Popen]:
    """Start all processes of a run; if `alone`, start one process that has all their devices."""
    devices = WORK[name].processes
    count = 1 if alone else devices
    _begun(out).unlink(missing_ok=True)
    # Compiled programs are cached; otherwise most kills would interrupt compilations. If a kill
    # leaves an incomplete file in the cache, JAX warns and compiles the program again.
    environment = {
        "JAX_COMPILATION_CACHE_DIR": str(inputs.with_name("programs")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        "PYTHONWARNINGS": "ignore:Error reading persistent compilation cache",
        **os.environ,
        # Rounding depends on the batch size per device, so every run has the same total number of
        # devices.
        "JAX_NUM_CPU_DEVICES": str(devices // count),
    }
    command = [sys.executable, "-m", "experiments.benchmarks.killed_work", name]
    command += [str(out), str(inputs)]
    address = _free_address()
    places = [[f"{address},{index}/{count}"] if count > 1 else [] for index in range(count)]
    processes = []
    for index, place in enumerate(places):
        with _errors(out, index).open("w") as errors:  # the process has inherited the file
            processes.append(
                subprocess.Popen(
                    command + place,
                    cwd=Path(__file__).parents[2],
                    env=environment,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                )
            )
    return processes


def _free_address() -> str:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


def _begun(out: Path) -> Path:
    return out.with_name(f"{out.name}.begun")


def _errors(out: Path, index: int) -> Path:
    return out.with_name(f"{out.name}.errors-{index}")


def _wait_for_imports(process: subprocess.Popen, out: Path) -> None:
    while process.poll() is None and not _begun(out).exists():
        time.sleep(0.002)


def _finish(name: str, out: Path, inputs: Path, *, alone: bool = False) -> float:
    """Do a run without a kill; return its seconds (a single process: without its imports)."""
    begin = time.perf_counter()
    processes = _start(name, out, inputs, alone=alone)
    if len(processes) == 1:
        _wait_for_imports(processes[0], out)
        begin = time.perf_counter()
    for index, process in enumerate(processes):
        assert process.wait() == 0, (
            f"{name} fails without a kill: {_errors(out, index).read_text()}"
        )
    return time.perf_counter() - begin


def _saving(out: Path) -> bool:
    return any(out.glob("**/*.tmp"))


def _kill(
    processes: Sequence[subprocess.Popen], victim: int, out: Path, delay: float, *, in_a_save: bool
) -> tuple[bool, float]:
    """Send SIGKILL to a process after `delay` seconds; if `in_a_save`, first wait for a save.

    Returns:
      A pair: whether the process was killed before it ended, and the number of seconds until all
      other processes ended.

    Raises:
      AssertionError: another process did not end within a minute, or it failed and the last line of
        its error output did not name the killed process.
    """
    if len(processes) == 1:
        _wait_for_imports(processes[0], out)
    until = time.perf_counter() + delay
    process = processes[victim]
    while process.poll() is None and time.perf_counter() < until:
        time.sleep(0.002)
    while in_a_save and process.poll() is None and not _saving(out):
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    begin, status = time.perf_counter(), process.wait()
    assert status in (0, -signal.SIGKILL), f"the run ended with status {status}"
    for index, other in enumerate(processes):
        if index != victim:
            try:
                ended = other.wait(timeout=60)
            except subprocess.TimeoutExpired:
                other.kill()
                raise AssertionError(f"process {index} goes on without process {victim}") from None
            line = f"error: process {victim} of {len(processes)} "
            last = ["", *_errors(out, index).read_text().splitlines()]
            assert ended == 0 or (ended == LOST and last[-1].startswith(line)), (ended, last)
    return status != 0, time.perf_counter() - begin


def run(
    name: str, folder: Path, *, kills: int, seed: int = 0, seconds: float = math.inf
) -> dict[str, Any]:
    """Kill a run repeatedly, check its results, and return the numbers of kills and runs.

    Args:
      name: the name of the run in `WORK`.
      folder: an empty folder for inputs and results.
      kills: the number of kills after which the function returns.
      seed: the seed of the random kill times.
      seconds: the time in seconds after which no more kills are made.

    Raises:
      AssertionError: the results differ from the results of the undisturbed run, a run fails, a
        saved file is lost, or the trials that were computed again are more than one chunk per kill.
    """
    until = time.perf_counter() + seconds
    work, rng = WORK[name], random.Random(f"{seed} {name}")
    inputs, undisturbed = folder / "inputs", folder / "undisturbed"
    write_inputs(inputs)
    _finish(name, undisturbed, inputs, alone=True)
    expected = work.digest(undisturbed)
    if work.processes > 1:
        _finish(name, folder / "compiled", inputs)
    # Now the cache contains all compiled programs, so this time excludes compilation, as in killed
    # runs.
    whole = _finish(name, folder / "again", inputs)
    assert work.digest(folder / "again") == expected, f"two undisturbed runs of {name} differ"
    counts = {"kills": 0, "kills_in_a_save": 0, "runs": 0, "trials_computed_again": 0}
    waits: list[float] = []
    while counts["kills"] < kills and time.perf_counter() < until:
        out = folder / f"killed-{counts['runs']}"
        finished: set[str] = set()
        ended = False
        while not ended and counts["kills"] < kills and time.perf_counter() < until:
            in_a_save = rng.random() < 0.5
            victim = rng.randrange(work.processes)
            processes = _start(name, out, inputs)
            delay = rng.uniform(0, whole)
            killed, wait = _kill(processes, victim, out, delay, in_a_save=in_a_save)
            ended = not killed
            pieces = {path.name for path in out.glob(work.pieces)}
            assert work.drops or finished <= pieces, f"{name} lost {sorted(finished - pieces)}"
            finished = pieces
            if not ended:
                counts["kills"] += 1
                counts["kills_in_a_save"] += _saving(out)
                waits.append(round(wait, 1))
        if not ended:
            _finish(name, out, inputs)
        assert work.digest(out) == expected, f"killed {name} differs from the undisturbed run"
        again = len(begun_trials(out)) - len(set(begun_trials(out)))
        assert again <= CHUNK * counts["kills"], "more than the chunk in flight was lost"
        counts["trials_computed_again"] += again
        counts["runs"] += 1
    report = {"work": name, "seed": seed, **counts, "undisturbed_seconds": round(whole, 2)}
    return report | ({"seconds_until_all_ended": waits} if work.processes > 1 else {})


def save(reports: Sequence[dict[str, Any]], results: Path = RESULTS) -> None:
    """Write reports into the results file; replace older reports of the same run and seed."""
    from experiments import machine
    from slth_jax import storage

    stored = storage.read_json(results)["reports"] if results.exists() else []
    by_run = {(r["work"], r["seed"]): r for r in (*stored, *reports)}
    ordered = [by_run[key] for key in sorted(by_run)]
    storage.write_json(results, {"reports": ordered, **machine.report()})


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.kills",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", default=",".join(WORK), help="runs, by commas (default: all)")
    parser.add_argument("--kills", type=int, default=25, help="kills per run (default: 25)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments (default: 0)")
    parser.add_argument(
        "--seconds", type=float, default=math.inf, help="time limit for kills (default: no limit)"
    )
    parser.add_argument("--save", action="store_true", help="write results/kills.json")
    options = parser.parse_args(arguments)
    for name in options.only.split(","):
        if name not in WORK:
            parser.error(f"--only must be among {', '.join(WORK)}, got {name!r}")
    for name in options.only.split(","):
        with tempfile.TemporaryDirectory() as folder:
            report = run(
                name, Path(folder), kills=options.kills, seed=options.seed, seconds=options.seconds
            )
        print(json.dumps(report), flush=True)
        if options.save:
            save([report])


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    main()
