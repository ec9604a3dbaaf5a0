"""Two processes of two devices each against one process of four devices."""

import json

import jax
import numpy as np
import pytest
import training_worker as worker
from processes import finish, start


def launch(out, scenario):
    """Run two workers; return their exit statuses and their texts."""
    file = worker.__file__
    return finish(start(lambda index, port: (file, index, port, out, scenario), 2, devices=2), 240)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The folder of a training that was stopped at the same step on two processes."""
    out = tmp_path_factory.mktemp("stopped")
    statuses, texts = launch(out, "sigterm")
    assert statuses == [143, 143], texts
    names = sorted(path.name for path in (out / "checkpoints").iterdir())
    assert names == ["step-00000004", "step-00000006"]
    return out


def close(left, right):
    for ours, theirs in zip(left["losses"], right["losses"], strict=True):
        for entry, reference in zip(ours, theirs, strict=True):
            assert entry.keys() == reference.keys()
            np.testing.assert_allclose(
                [*entry.values()], [*reference.values()], rtol=1e-5, atol=1e-6
            )


@pytest.mark.slow
def test_sigterm_at_one_process_stops_both_at_one_step_and_one_process_finishes(stopped):
    finished = worker.outcome(worker.fit("rows", out=stopped))
    close(finished, worker.outcome(worker.fit("rows")))


@pytest.mark.slow
def test_two_processes_train_what_one_trains(tmp_path):
    statuses, texts = launch(tmp_path, "all")
    assert statuses == [0, 0], texts
    first, second = (
        json.loads(next(line for line in out.splitlines() if line.startswith("results "))[8:])
        for out, _ in texts
    )
    assert first == second
    for mesh in worker.MESHES:
        alone = worker.outcome(worker.fit(mesh))
        close(first[mesh], alone)
        if mesh == "runs":  # nothing is summed over processes
            assert first[mesh] == alone
    close(first["saved"], first["runs"])
    # Every process wrote shards of its own.
    shards = (tmp_path / "checkpoints" / "step-00000008").rglob("ocdbt.process_*")
    assert sorted(path.name for path in shards) == ["ocdbt.process_0", "ocdbt.process_1"]
    resumed = worker.outcome(worker.fit(None, out=tmp_path))
    assert jax.process_count() == 1 and resumed["losses"] == first["saved"]["losses"]
