"""Two processes of four devices each, joined by jax.distributed, against one process of eight."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest
import sweep_worker
from processes import finish, free_port, start

from slth_jax import distributed, sweep


def launch(out, scenario):
    """Run two workers; return their exit statuses and their texts."""
    file = sweep_worker.__file__
    return finish(start(lambda index, port: (file, index, port, out, scenario), 2, devices=4))


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


@pytest.mark.slow
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
from slth_jax import distributed, watch
from slth_jax.cli import outcome
index, port, count, victim = map(int, sys.argv[1:5])
moment = sys.argv[5]
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
def main():
    with distributed.joined(f"localhost:{port},{index}/{count}", outcome.report):
        for step in range(3 if moment == "leaving" else 1000):
            if moment != "computing":
                multihost_utils.process_allgather(np.ones(3))
            if index == victim and step == 2:
                if moment == "error":
                    raise TypeError("the loss is NaN")
                if moment == "terminated":
                    raise SystemExit(143)
                if moment != "leaving":
                    die()
            time.sleep(0.2)
if index == victim and moment == "joining":
    die()
if index == victim and moment == "joined":
    watch.Watch.start = die  # the devices of all processes are not exchanged yet
if index == victim and moment == "leaving":
    watch.Watch.finished = die
sys.exit(outcome.run(main))
"""
WORDS = {"error": "has failed (the loss is NaN)", "terminated": "has ended by SIGTERM"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "victim", "count"),
    [
        ("joining", 0, 2),
        ("joining", 1, 2),
        ("joined", 0, 2),
        ("joined", 1, 2),
        ("collective", 0, 3),
        ("collective", 2, 3),
        ("computing", 1, 3),
        ("error", 1, 3),
        ("terminated", 1, 2),
        ("leaving", 0, 2),
        ("leaving", 1, 2),
    ],
)
def test_no_process_waits_for_a_lost_one(moment, victim, count, monkeypatch):
    """All end within a minute, and the last line says which process was lost."""
    monkeypatch.setenv("SLTH_JOIN_SECONDS", "20")
    arguments = (count, victim, moment)
    workers = start(lambda index, port: ("-c", LOSES, index, port, *arguments), count, devices=1)
    status = workers[victim].wait(timeout=60)
    ended = {"error": 1, "terminated": distributed.PREEMPTED}
    assert status == ended.get(moment, -signal.SIGKILL)
    begin = time.monotonic()
    statuses, texts = finish(workers, 70)
    assert time.monotonic() - begin < 60
    words = (WORDS.get(moment, "is lost"),)
    if moment == "joining":
        words = ("did not join within",)
    elif moment == "joined" and victim == 0:
        # The news that all have joined may not have reached process 1.
        words = ("is lost", "did not join within")
    for index in {*range(count)} - {victim}:
        text = texts[index][1]
        lost = distributed.PREEMPTED if moment == "terminated" else distributed.LOST
        assert statuses[index] == lost, text
        last = text.splitlines()[-1]
        assert last.startswith(tuple(f"error: process {victim} of {count} {w}" for w in words))


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
