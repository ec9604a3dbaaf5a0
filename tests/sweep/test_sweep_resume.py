"""Sweeps stopped, resumed, extended, and distinguished from one another."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sweep_trials import CHEAP, cheap, mesh_of, same

from slth_jax import storage, sweep
from slth_jax.storage import CheckpointError
from slth_jax.sweep import plan as sweep_plan
from slth_jax.sweep import program as sweep_program


class Stop(Exception):
    pass


def stop_after(trials):
    def progress(done, total):
        assert total == 15
        if done >= trials:
            raise Stop

    return progress


def test_resuming_computes_only_what_is_missing(finished, tmp_path, computed):
    out = tmp_path / "out"
    for trials in (4, 12):
        with pytest.raises(Stop):
            sweep.run(cheap, out=out, progress=stop_after(trials), **CHEAP)
        assert not (out / "table.csv").exists()
    assert sorted(computed) == list(range(12))
    with pytest.raises(CheckpointError, match=r"lacks 3 of 15 trials: run the sweep again"):
        sweep.load(out)
    assert sweep.load(out, partial=True).missing == 3
    results = sweep.run(cheap, out=out, **CHEAP)
    assert sorted(computed) == list(range(15))
    same(results, finished[1])
    sweep.run(cheap, out=out, **CHEAP)
    assert len(computed) == 15
    assert (out / "table.csv").read_bytes() == (finished[0] / "table.csv").read_bytes()


def test_sigterm_keeps_finished_chunks_and_exits_with_143(finished, tmp_path, computed):
    def progress(done, total):
        if done == 8:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught:
        sweep.run(cheap, out=tmp_path, progress=progress, **CHEAP)
    assert caught.value.code == 143 and signal.getsignal(signal.SIGTERM) is before
    assert sweep.load(tmp_path, partial=True).missing == 7
    computed.clear()
    same(sweep.run(cheap, out=tmp_path, **CHEAP), finished[1])
    assert sorted(computed) == list(range(8, 15))


def renamed(key, parameters):
    # The same computation under other names.
    scale = parameters["scale"]
    return {"error": jax.random.uniform(key) * scale}, jax.random.bits(key, (5,)) % 2 == 0


OFFSET = np.float32(1)


def other_constant(key, hparams):
    return {"error": jax.random.uniform(key) * hparams["scale"] + OFFSET * 2}, jnp.zeros(5, bool)


def test_a_trial_is_known_by_what_it_computes(folder, computed):
    sweep.run(renamed, out=folder, **CHEAP)
    assert computed == []
    for changed in (
        other_constant,
        lambda key, h: (cheap(key, h)[0], jax.random.bits(key, (5,)) % 3 == 0),
        lambda key, h: cheap(key, h)[0],
    ):
        with pytest.raises(
            CheckpointError, match=r"the trial .* computes something else"
        ) as caught:
            sweep.run(changed, out=folder, **CHEAP)
        assert "\n" not in str(caught.value)


def test_captured_arrays_are_part_of_a_trial():
    def prints(values):
        constant = jnp.asarray(values)
        inner = jax.jit(lambda x: x + constant)
        plan = sweep_plan.make_plan(seeds=1, grid={"x": [1.0]})
        trial = lambda key, h: {"y": inner(h["x"]).sum()}  # noqa: E731
        return sweep_program.Program(trial, plan, 0, mesh_of(1)).fingerprint

    assert prints([1.0, 2.0]) == prints([1.0, 2.0]) != prints([1.0, 3.0])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seeds": 4}, r"seeds is 5 there and 4 here \(it may go on with these and more"),
        ({"seeds": [0, 1, 2, 3, 5]}, r"seeds is 5 there and \[0, 1, 2, 3, 5\] here"),
        ({"grid": {"scale": [0.5, 2.0]}}, r"grid.scale\[2\] is 3.0 there and missing here"),
        ({"chunk": 5}, "chunk is 4 there and 5 here"),
        ({"config": {"lr": 0.1}}, "config.lr is missing there and 0.1 here"),
    ],
)
def test_another_configuration_is_refused(folder, changes, words):
    with pytest.raises(CheckpointError, match=words) as caught:
        sweep.run(cheap, out=folder, **{**CHEAP, **changes})
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)
    assert len(sweep.load(folder)) == 15


def test_another_version_is_refused(folder, monkeypatch):
    monkeypatch.setattr(sweep.config.jax, "__version__", "0.99")
    with pytest.raises(CheckpointError, match=r"versions.jax is .* there and '0.99' here"):
        sweep.run(cheap, out=folder, **CHEAP)


# The records, and their times


def test_more_seeds_are_added_to_a_finished_sweep(finished, folder, computed):
    _out, before = finished
    more = sweep.run(cheap, out=folder, **{**CHEAP, "seeds": 8})
    assert len(more) == 24 and len(computed) >= 9
    old = {(row["scale"], row["seed"]): row for row in before.rows}
    assert {(r["scale"], r["seed"]): r for r in more.rows if r["seed"] < 5} == old
    fresh = sweep.run(cheap, **{**CHEAP, "seeds": 8})
    same(more, fresh)
    same(sweep.load(folder), fresh)
    computed.clear()
    again = sweep.run(cheap, out=folder, **{**CHEAP, "seeds": 8})
    assert not computed and again.finished


def test_what_fails_before_its_first_result_binds_nobody(tmp_path):
    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep.run(cheap, out=tmp_path, on_start=stop, **CHEAP)
    assert not (tmp_path / "config.json").exists()
    assert len(sweep.run(cheap, out=tmp_path, **{**CHEAP, "chunk": 5})) == 15


def test_of_two_sweeps_begun_in_one_empty_folder_the_first_result_decides(finished, tmp_path):
    """Neither has recorded anything when the other looks: the settings are compared again."""
    other = {**CHEAP, "grid": {"scale": [0.5, 2.0, 4.0]}}

    def first(trials):
        if not (tmp_path / "config.json").exists():
            sweep.run(cheap, out=tmp_path, shard="1/2", **CHEAP)

    with pytest.raises(
        CheckpointError, match=r"holds another sweep: grid\.scale\[2\] is"
    ) as caught:
        sweep.run(cheap, out=tmp_path, shard="0/2", on_start=first, **other)
    assert "\n" not in str(caught.value)
    sweep.run(cheap, out=tmp_path, shard="0/2", **CHEAP)
    same(sweep.load(tmp_path), finished[1])
    assert repr(sweep.load(tmp_path)) == "Results(15 of 15 trials: scale, seed -> error)"


def test_more_shards_than_chunks_are_told(tmp_path, caplog):
    sweep.run(cheap, out=tmp_path, shard="7/9", **CHEAP)
    assert "9 shards, but only 4 chunks" in caplog.text


OTHER_DRAWS = """
import sys
sys.path[:0] = [sys.argv[2]]
import jax
from slth_jax import sweep, ticket
from slth_jax.storage import CheckpointError
from sweep_trials import CHEAP, cheap
results = sweep.load(sys.argv[1])
for call in (
    lambda: sweep.run(cheap, out=sys.argv[1], **CHEAP),
    lambda: ticket.from_row(results, 0, "theory", {}),
):
    try:
        call()
    except CheckpointError as error:
        print(error)
"""


def test_other_random_numbers_are_noticed(folder):
    """Shards must not join, and tickets must not be drawn, where a setting changes the draws."""
    done = subprocess.run(
        [sys.executable, "-c", OTHER_DRAWS, str(folder), str(Path(__file__).parent)],
        env={**os.environ, "JAX_THREEFRY_PARTITIONABLE": "0"},
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True,
    )  # fmt: skip
    refused, ticket = done.stdout.splitlines()
    assert "holds another sweep: random numbers differ" in refused
    assert "draws other random numbers than the sweep did" in ticket


def test_a_sweep_of_a_version_without_the_draws_goes_on(finished, folder, computed):
    config = storage.read_json(folder / "config.json", checksum=True)
    del config["draws"]
    storage.write_json(folder / "config.json", config, checksum=True)
    shutil.rmtree(folder / "chunks" / "000001")
    same(sweep.run(cheap, out=folder, **CHEAP), finished[1])
    same(sweep.load(folder), finished[1])
    assert len(computed) == 4
