"""Two processes of four devices each, joined by jax.distributed, against one process of eight."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest
import sweep_worker

from slth_jax import distributed, sweep


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def launch(out, scenario):
    """Run two workers; return their exit statuses and their texts."""
    port = free_port()
    # Programs of several processes are not shared with programs of a single process.
    no_cache = {"JAX_ENABLE_COMPILATION_CACHE": "0"}
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "4", "JAX_PLATFORMS": "cpu", **no_cache}
    workers = [
        subprocess.Popen(
            [sys.executable, sweep_worker.__file__, str(index), str(port), str(out), scenario],
            env=environment,
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    try:
        texts = [worker.communicate(timeout=120) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    return [worker.returncode for worker in workers], texts


@pytest.fixture(scope="module")
def reference():
    assert jax.process_count() == 1 and jax.device_count() == 8
    return sweep_worker.digest(sweep.run(sweep_worker.make_trial(), **sweep_worker.SWEEP))


@pytest.mark.slow
def test_two_processes_give_the_results_of_one(reference, tmp_path):
    out = tmp_path / "out"
    statuses, texts = launch(out, "all")
    assert statuses == [0, 0], texts
    for stdout, _ in texts:
        (line,) = [line for line in stdout.splitlines() if line.startswith("digests ")]
        digests = json.loads(line.removeprefix("digests "))
        assert {digests["memory"], digests["saved"], digests["resumed"]} == {reference}
        assert (
            digests["refused"].startswith("cannot make the folder")
            and "\n" not in digests["refused"]
        )
    assert sweep_worker.digest(sweep.load(out)) == reference


def test_sigterm_at_one_process_ends_both_and_one_process_finishes(reference, tmp_path):
    statuses, texts = launch(tmp_path, "sigterm")
    assert statuses == [143, 143], texts
    left = sweep.load(tmp_path, partial=True).missing
    assert 0 < left < 42
    finished = sweep.run(sweep_worker.make_trial(), out=tmp_path, **sweep_worker.SWEEP)
    assert sweep_worker.digest(finished) == reference


LOSES = """
import os, signal, sys, time
import jax, numpy as np
from jax.experimental import multihost_utils
from slth_jax import distributed
index, port, victim, kind = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
with distributed.joined(f"localhost:{port},{index}/3"):
    for step in range(1000):
        if kind != "computing":
            multihost_utils.process_allgather(np.ones(3))
        if index == victim and step == 5:
            if kind == "error":
                raise ValueError("the loss is NaN")
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.2)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "victim"), [("collective", 0), ("collective", 2), ("computing", 1), ("error", 1)]
)
def test_no_process_waits_for_a_lost_one(kind, victim):
    """All end within a minute, and the last line says which process was lost."""
    port, start = free_port(), time.monotonic()
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", LOSES, str(index), str(port), str(victim), kind],
            env={**os.environ, "JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"},
            cwd=Path(__file__).parents[2],
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(3)
    ]
    try:
        texts = [worker.communicate(timeout=150)[1] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert time.monotonic() - start < 120  # with the start of three processes
    words = "has failed (the loss is NaN)" if kind == "error" else "is lost"
    for index, (worker, text) in enumerate(zip(workers, texts, strict=True)):
        if index == victim:
            assert worker.returncode == (1 if kind == "error" else -signal.SIGKILL)
        else:
            assert worker.returncode == distributed.LOST, text
            line = f"error: process {victim} of 3 {words}; the same command continues"
            assert text.splitlines()[-1] == line


TERM = """
import sys, time
import jax
from slth_jax import distributed
with distributed.joined(f"localhost:{sys.argv[1]},0/1"), distributed.until_sigterm() as check:
    print("joined", flush=True)
    for _ in range(300):
        check()
        time.sleep(0.1)
"""


@pytest.mark.parametrize("seconds", [0.0, 1.0, 2.0, None])
def test_sigterm_ends_a_process_at_every_moment_of_its_start(seconds):
    with subprocess.Popen(
        [sys.executable, "-c", TERM, str(free_port())],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
    ) as worker:
        if seconds is None:
            assert worker.stdout.readline() == "joined\n"
        else:
            time.sleep(seconds)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(timeout=60) in (-signal.SIGTERM, 143)
