"""Two processes of four devices each, joined by jax.distributed, against one process of eight."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import pytest
import sweep_worker

from slth_jax import sweep


def launch(out, scenario):
    """Run two workers; return their exit statuses and what they printed."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
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


def test_two_processes_give_the_results_of_one(reference, tmp_path):
    out = tmp_path / "out"
    statuses, texts = launch(out, "all")
    assert statuses == [0, 0], texts
    for stdout, _ in texts:
        (line,) = [line for line in stdout.splitlines() if line.startswith("told ")]
        told = json.loads(line.removeprefix("told "))
        assert {told["memory"], told["saved"], told["resumed"]} == {reference}
        assert told["refused"].startswith("cannot make the folder") and "\n" not in told["refused"]
    assert sweep_worker.digest(sweep.load(out)) == reference


def test_sigterm_at_one_process_ends_both_and_one_process_finishes(reference, tmp_path):
    statuses, texts = launch(tmp_path, "sigterm")
    assert statuses == [143, 143], texts
    left = sweep.load(tmp_path, partial=True).missing
    assert 0 < left < 42
    finished = sweep.run(sweep_worker.make_trial(), out=tmp_path, **sweep_worker.SWEEP)
    assert sweep_worker.digest(finished) == reference
