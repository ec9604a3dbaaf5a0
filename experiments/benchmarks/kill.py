"""Kill a sweep at random moments, resume it each time, compare it with an undisturbed one.

    python -m experiments.benchmarks.kill --kills 20 --points 32 --seeds 64

Prints one JSON line. Half of the kills wait for a save to begin, so that some land in the middle
of one; whether they did is looked up in the folder afterwards.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CHUNK = 64


def trial(key, hparams):
    """A trial of some milliseconds, with masks: random walks that are folded by a sine."""
    import jax
    import jax.numpy as jnp

    def step(_, walk):
        return jnp.sin(3 * walk) + hparams["drift"]

    walk = jax.lax.fori_loop(0, 3000, step, jax.random.normal(key, (50,)))
    return {"mean": jnp.mean(walk), "most": jnp.max(walk)}, {"mask": walk > 0.5}


def work(out: Path, log: Path, points: int, seeds: int) -> None:
    """Run the sweep, noting in `log` every trial whose computation is begun."""
    from slth_jax import sweep

    def note(trials: list[int]) -> None:
        with open(log, "a") as file:
            file.write(json.dumps(trials) + "\n")

    grid = {"drift": [index / 50 for index in range(points)]}
    sweep.run(trial, seeds=seeds, grid=grid, out=out, chunk=CHUNK, on_start=note)


def _worker(out: Path, log: Path, points: int, seeds: int) -> subprocess.Popen:
    names = [str(out), str(log), str(points), str(seeds)]
    command = [sys.executable, "-m", "experiments.benchmarks.kill", "--work", *names]
    return subprocess.Popen(command, cwd=Path(__file__).parents[2])


def _begun(log: Path) -> list[int]:
    if not log.exists():
        return []
    return [trial for line in log.read_text().splitlines() for trial in json.loads(line)]


def _saving(out: Path) -> bool:
    return any((out / "chunks").glob("*.tmp"))


def _digest(out: Path) -> str:
    """Return a checksum of all rows and all masks."""
    from slth_jax import sweep

    results, digest = sweep.load(out), hashlib.sha256()
    for index in range(len(results)):
        digest.update(json.dumps(results.row(index)).encode())
        digest.update(results.arrays(index)["mask"].tobytes())
    digest.update((out / "table.csv").read_bytes())
    return digest.hexdigest()


def run(folder: Path, *, kills: int, points: int, seeds: int, seed: int = 0) -> dict:
    """Return the counts of kills, of kills during a save and of trials, and whether all is equal.

    Raises:
      AssertionError: a result differs, or a trial outside the chunk in flight was computed twice.
    """
    rng, total = random.Random(seed), points * seeds
    undisturbed, out = folder / "undisturbed", folder / "killed"
    begin = time.perf_counter()
    assert _worker(undisturbed, folder / "undisturbed.log", points, seeds).wait() == 0
    whole = time.perf_counter() - begin
    assert sorted(_begun(folder / "undisturbed.log")) == list(range(total))

    done, in_saves, again = 0, 0, 0
    finished: set[int] = set()
    while done < kills:
        log = folder / f"{done}.log"
        worker = _worker(out, log, points, seeds)
        # Each process computes about its share of the rest, so that work is left at every kill.
        share = (total - len(finished)) / (kills - done + 1)
        goal, for_save = rng.uniform(0, 2 * share), rng.random() < 0.5
        if rng.random() < 0.15:  # before any trial is begun
            goal, for_save = -1, False
            time.sleep(rng.uniform(0, 2))
        while worker.poll() is None and (
            len(_begun(log)) <= goal or (for_save and not _saving(out))
        ):
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.03))
        worker.send_signal(signal.SIGKILL)
        killed = worker.wait() == -signal.SIGKILL
        begun = _begun(log)
        assert not finished & set(begun), "a finished trial was computed again"
        now = {int(path.name) for path in (out / "chunks").glob("*[0-9]")}
        durable = {trial for chunk in now for trial in range(chunk * CHUNK, (chunk + 1) * CHUNK)}
        lost = set(begun) - durable
        assert len(lost) <= CHUNK, "more than the chunk in flight was lost"
        assert finished <= durable
        finished, again = durable, again + len(lost)
        if not killed:
            break  # it ended before the signal came
        done, in_saves = done + 1, in_saves + _saving(out)
    assert _worker(out, folder / "last.log", points, seeds).wait() == 0
    assert not finished & set(_begun(folder / "last.log"))
    assert _digest(out) == _digest(undisturbed), "results differ from the undisturbed sweep's"
    return {
        "trials": total,
        "chunk": CHUNK,
        "kills": done,
        "kills_in_a_save": in_saves,
        "trials_computed_again": again,
        "identical": True,
        "undisturbed_seconds": round(whole, 2),
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--points", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    parser.add_argument("--save", action="store_true", help="keep the line in results/kill.json")
    parser.add_argument("--work", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        out, log, points, seeds = options.work
        return work(Path(out), Path(log), int(points), int(seeds))
    with tempfile.TemporaryDirectory() as folder:
        counts = {"kills": options.kills, "points": options.points, "seeds": options.seeds}
        report = run(Path(folder), seed=options.seed, **counts)
    print(json.dumps(report))
    if options.save:
        from slth_jax import storage

        results = storage.make_folder(Path(__file__).parent / "results")
        storage.write_json(results / "kill.json", report)
    return None


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    main()
