"""Parts of one sweep, joined."""

import pytest
from sweep_trials import CHEAP, cheap, same

from slth_jax import storage, sweep
from slth_jax.storage import CheckpointError, Locked


def test_shards_in_one_folder_join(finished, tmp_path):
    for index in (2, 0):
        part = sweep.run(cheap, out=tmp_path, shard=f"{index}/3", **CHEAP)
        assert part.missing == 15 - len(part) and not (tmp_path / "table.csv").exists()
    sweep.run(cheap, out=tmp_path, shard="1/3", **CHEAP)
    same(sweep.load(tmp_path), finished[1])
    assert (tmp_path / "table.csv").read_bytes() == (finished[0] / "table.csv").read_bytes()


def test_shards_in_several_folders_join(finished, tmp_path):
    outs = [tmp_path / name for name in "ab"]
    for index, out in enumerate(outs):
        sweep.run(cheap, out=out, shard=f"{index}/2", **CHEAP)
    same(sweep.load(*outs), finished[1])
    sweep.run(cheap, out=tmp_path / "c", **{**CHEAP, "seeds": 3})
    with pytest.raises(CheckpointError, match=r"holds another sweep: seeds is 3 there"):
        sweep.load(outs[0], tmp_path / "c")


def test_a_shard_without_chunks_is_empty(tmp_path):
    part = sweep.run(cheap, out=tmp_path, shard="8/9", **CHEAP)
    assert len(part) == 0 and part.rows == [] and part.missing == 15


def test_one_process_a_folder_and_one_a_shard(tmp_path):
    with storage.lock(tmp_path), pytest.raises(Locked, match="is in use by process"):
        sweep.run(cheap, out=tmp_path, **CHEAP)
    with storage.lock(tmp_path), pytest.raises(Locked):
        sweep.run(cheap, out=tmp_path, shard="0/2", **CHEAP)
    with storage.lock(tmp_path, shared=True), storage.lock(tmp_path, name="lock-0-of-2"):
        with pytest.raises(Locked):
            sweep.run(cheap, out=tmp_path, shard="0/2", **CHEAP)
        with pytest.raises(Locked):
            sweep.run(cheap, out=tmp_path, **CHEAP)
        sweep.run(cheap, out=tmp_path, shard="1/2", **CHEAP)
