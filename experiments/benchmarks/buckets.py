"""Disturb sweeps that write to local buckets, check their results, and measure the overhead.

    python -m experiments.benchmarks.buckets --kills 50 --fault-seconds 300 --pairs 5

The disturbances are kills, failing requests, a second writer and an exceeded quota. After each
disturbance the sweep's measurements and masks must be equal, bit for bit, to the results of an
undisturbed sweep in a local folder. The command prints one line of JSON for each bucket server.
moto serves S3; `bucket_servers` emulates Google Cloud Storage.
"""

import argparse
import hashlib
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmarks import bucket_servers
from slth_jax import storage, sweep
from slth_jax.cli import outcome

ROOT = Path(__file__).parents[2]
CHUNK = 64
SECONDS = 3.0  # a lock not renewed for this time can be taken over; default 45


def trial(key, hparams):
    """Return two metrics and a mask of random walks; a trial takes only milliseconds."""

    def step(_, walk):
        return jnp.sin(3 * walk) + hparams["drift"]

    walk = jax.lax.fori_loop(0, 3000, step, jax.random.normal(key, (50,)))
    return {"mean": jnp.mean(walk), "most": jnp.max(walk)}, {"mask": walk > 0.5}


def work(out: str, points: int, seeds: int) -> None:
    """Run the sweep."""
    grid = {"drift": [index / 50 for index in range(points)]}
    sweep.run(trial, seeds=seeds, grid=grid, out=out, chunk=CHUNK)


class Sweeps:
    """Runs disturbed sweeps in a bucket and compares their results with an undisturbed sweep's."""

    def __init__(self, url: str, environment: Mapping[str, str], logs: Path, size: tuple[int, int]):
        self.url, self.logs, self.size = url, logs, size
        os.environ.update(environment)
        os.environ["SLTH_CLAIM_SECONDS"] = str(SECONDS)
        self.whole = self.digest_of(logs / "folder")

    def start(self, out: str) -> subprocess.Popen:
        """Start a process that runs the sweep in `out`."""
        names = [out, *map(str, self.size)]
        command = [sys.executable, "-m", __spec__.name, "--work", *names]
        return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)

    def finish(self, out: str) -> None:
        """Run the sweep to its end, and compare its results with the undisturbed sweep's."""
        worker = self.start(out)
        _, errors = worker.communicate()
        assert worker.returncode == 0, errors
        assert digest(out) == self.whole, "results differ from the undisturbed sweep's"

    def digest_of(self, folder: Path) -> str:
        """Run an undisturbed sweep in a folder and return the checksum of its results."""
        worker = self.start(str(folder))
        assert worker.wait() == 0, worker.stderr and worker.stderr.read()
        return digest(str(folder))

    def kills(self, count: int, rng: random.Random) -> dict[str, Any]:
        """Kill a sweep at random times; check that it loses no finished chunk of trials."""
        out, chunks, begin = f"{self.url}/kills", 0, time.perf_counter()
        for number in range(count):
            worker = self.start(out)
            goal = chunks + rng.choice((0, 0, 1))  # 1: wait for a new chunk
            until = time.monotonic() + rng.uniform(0, 12)
            while worker.poll() is None and (time.monotonic() < until or _chunks(out) < goal):
                time.sleep(0.02)
            worker.kill()
            worker.communicate()
            now = _chunks(out)
            assert now >= chunks, "a finished chunk was lost"
            chunks = now
            if now * CHUNK >= self.size[0] * self.size[1]:  # the sweep is complete
                self.finish(out)
                out, chunks = f"{self.url}/kills-{number}", 0
        self.finish(out)
        return {"kills": count, "seconds": round(time.perf_counter() - begin, 1)}

    def two_writers(self) -> str:
        """Lock a folder, start a second process that writes there; return its error message."""
        out = f"{self.url}/two"
        with storage.lock(out):
            line = _line(self.start(out))
        self.finish(out)
        return line

    def dead_owner(self) -> float:
        """Kill a process that holds a lock; return the seconds until a new process has the lock."""
        out = f"{self.url}/dead"
        lock = storage.place(out) / "lock"
        worker = self.start(out)
        while not lock.exists():
            time.sleep(0.05)
        worker.kill()
        worker.communicate()
        left, begin = lock.read_bytes(), time.perf_counter()
        worker = self.start(out)
        while lock.exists() and json.loads(left)["token"] in lock.read_bytes().decode():
            time.sleep(0.05)
        seconds = time.perf_counter() - begin
        worker.communicate()
        self.finish(out)
        return round(seconds, 1)

    def faults(self, proxy: bucket_servers.Proxy, seconds: float, rng: random.Random) -> int:
        """Run sweeps while requests fail or are delayed; return the number of disturbed requests.

        Each request is disturbed with probability 1/2. During the last tenth of `seconds` all
        requests are disturbed.
        """
        until, failed = time.monotonic() + seconds, 0
        lock = threading.Lock()

        def plan(method: str, path: str) -> bucket_servers.Fault:
            nonlocal failed
            with lock:
                left = until - time.monotonic()
                if left < 0 or (rng.random() < 0.5 and left > seconds / 10):
                    return None
                failed += 1
                return rng.choice((503, 500, "before", "after", "slow"))

        proxy.plan = plan
        number = 0
        while time.monotonic() < until:
            self.finish(f"{self.url}/faults-{number}")
            number += 1
        proxy.plan = lambda method, path: None
        return failed

    def quota(self, proxy: bucket_servers.Proxy) -> str:
        """Let all writes of a sweep after the third fail; return the sweep's error message."""
        writes = 0

        def plan(method: str, path: str) -> bucket_servers.Fault:
            nonlocal writes
            writes += method in ("PUT", "POST") and "lock" not in path
            return 507 if method in ("PUT", "POST") and writes > 3 else None

        out = f"{self.url}/quota"
        proxy.plan = plan
        worker = self.start(out)
        line = _line(worker)
        proxy.plan = lambda method, path: None
        assert _chunks(out) > 0
        self.finish(out)
        return line


def digest(out: str) -> str:
    """Return a checksum of a finished sweep's measurements, masks and CSV table."""
    results, hashed = sweep.load(out), hashlib.sha256()
    for index in range(len(results)):
        hashed.update(json.dumps(results.row(index)).encode())
        hashed.update(results.arrays(index)["mask"].tobytes())
    hashed.update(storage.read_bytes(storage.place(out) / "table.csv"))
    return hashed.hexdigest()


def _line(worker: subprocess.Popen) -> str:
    """Wait for a process; return its error message, the only line that TensorStore did not log."""
    _, errors = worker.communicate()
    lines = [line for line in errors.splitlines() if not re.match(r"[IWE]\d{4} ", line)]
    assert worker.returncode == 2 and len(lines) == 1, errors
    return lines[0]


def _chunks(out: str) -> int:
    return sum(1 for _ in (storage.place(out) / "chunks").glob("*.safetensors"))


def overhead(url: str, folder: Path, pairs: int) -> dict[str, Any]:
    """Alternate runs of figure 4 (quick) in a folder and in a bucket; return the median times."""
    seconds: dict[str, list[float]] = {"folder": [], "bucket": []}
    rows = set()
    for number in range(pairs):
        places = {"folder": str(folder / f"fig4-{number}"), "bucket": f"{url}/fig4-{number}"}
        for name, out in places.items():
            begin = time.perf_counter()
            command = [sys.executable, "-m", "experiments", "hidden-dim", "--quiet", "--out", out]
            subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - begin)
            rows.add(storage.read_bytes(storage.place(out) / "rows.jsonl"))
    assert len(rows) == 1, "the rows differ"
    ratios = [b / f for f, b in zip(seconds["folder"], seconds["bucket"], strict=True)]
    medians = {name: round(statistics.median(values), 2) for name, values in seconds.items()}
    return {**medians, "ratio": round(statistics.median(ratios), 3), "pairs": pairs}


def run(name: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run all disturbances on one server and return a report."""
    rng = random.Random(options.seed)
    parts: dict[str, Callable[[], Any]]
    with bucket_servers.SERVERS[name]() as (url, environment, proxy):
        sweeps = Sweeps(f"{url}/run", environment, folder, (options.points, options.seeds))
        parts = {
            "kills": lambda: sweeps.kills(options.kills, rng),
            "two_writers": sweeps.two_writers,
            "seconds_to_take_over": sweeps.dead_owner,
            "failed_requests": lambda: sweeps.faults(proxy, options.fault_seconds, rng),
            "quota": lambda: sweeps.quota(proxy),
            "figure_4_quick": lambda: overhead(url, folder, options.pairs),
        }
        only = options.only.split(",") if options.only else list(parts)
        return {"server": name, **{part: parts[part]() for part in only}}


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--fault-seconds", type=float, default=300)
    parser.add_argument("--pairs", type=int, default=5, help="runs of figure 4 per place")
    parser.add_argument("--points", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments")
    parser.add_argument("--only", default="", help="parts of the report, separated by commas")
    parser.add_argument("--servers", default="gs,s3")
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        out, points, seeds = options.work
        return outcome.run(lambda: work(out, int(points), int(seeds)))
    for name in options.servers.split(","):
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(run(name, Path(folder), options)), flush=True)
    return 0


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    sys.exit(main())
