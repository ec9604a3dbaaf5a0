"""Files against full disks, read-only folders, flipped bytes, and other processes."""

import errno
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from slth_jax import storage
from slth_jax.storage import CheckpointError, Damaged, Locked

LIMITED = """
import resource, signal, sys
from slth_jax import storage
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    storage.write_bytes(sys.argv[1], b"x" * 5000)
except storage.CheckpointError as error:
    print(error)
"""

HOLDER = """
import sys, time
from slth_jax import storage
with storage.lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def _one_line(caught):
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_bytes_are_replaced_whole(tmp_path):
    path = tmp_path / "a"
    storage.write_bytes(path, b"one")
    storage.write_bytes(path, b"two")
    assert storage.read_bytes(path) == b"two"
    with pytest.raises(KeyError), storage.writing(path) as file:
        file.write(b"half")
        raise KeyError
    assert path.read_bytes() == b"two" and os.listdir(tmp_path) == ["a"]


def test_a_real_write_limit_keeps_the_old_file(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"good")
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"cannot write {path}: {os.strerror(errno.EFBIG)}\n" and not done.stderr
    assert path.read_bytes() == b"good" and os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_keeps_the_old_file(tmp_path, monkeypatch, step):
    path = tmp_path / "a"
    path.write_bytes(b"good")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(storage.files.os, step, full)
    with pytest.raises(CheckpointError) as caught:
        storage.write_bytes(path, b"new")
    assert _one_line(caught) == f"cannot write {path}: No space left on device"
    assert path.read_bytes() == b"good" and os.listdir(tmp_path) == ["a"]


def test_folders_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for folder in (tmp_path / "file", Path("/proc/self/nothing")):  # root writes anywhere else
        for action in (
            lambda folder=folder: storage.write_bytes(folder / "a", b""),
            lambda folder=folder: storage.make_folder(folder / "b"),
            lambda folder=folder: storage.lock(folder / "c").__enter__(),
            lambda folder=folder: storage.save_tree(folder / "d", {"a": np.ones(3)})(),
        ):
            with pytest.raises(CheckpointError) as caught:
                action()
            assert str(folder) in _one_line(caught)


def test_json_round_trip_and_values_that_json_lacks(tmp_path):
    path = tmp_path / "a.json"
    value = {"a": np.float32(0.1), "b": (1, np.arange(2)), "c": [math.nan, math.inf, -math.inf]}
    storage.write_json(path, value, checksum=True)
    values = storage.read_json(path, checksum=True)
    assert values["a"] == float(np.float32(0.1)) and values["b"] == [1, [0, 1]]
    assert [float(entry) for entry in values["c"][1:]] == [math.inf, -math.inf]
    assert values["c"][0] == "NaN" and math.isnan(float(values["c"][0]))
    rows = [{"seed": 1, "error": math.nan}, {"seed": 2, "error": 0.5}]
    storage.write_rows(tmp_path / "rows.jsonl", rows)
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"seed": 1, "error": "NaN"}, rows[1]]


def test_every_flipped_byte_of_checked_json_is_noticed_or_harmless(tmp_path):
    path = tmp_path / "a.json"
    storage.write_json(path, {"seeds": [1, 2], "name": "x"}, checksum=True)
    good, value = path.read_bytes(), storage.read_json(path, checksum=True)
    noticed = 0
    for place in range(len(good)):
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        try:
            assert storage.read_json(path, checksum=True) == value
        except Damaged as error:
            noticed += 1
            assert str(path) in str(error) and "\n" not in str(error)
    for size in range(len(good) - 1):  # the last byte is the line's end
        path.write_bytes(good[:size])
        with pytest.raises(Damaged):
            storage.read_json(path, checksum=True)
    assert noticed > 0.8 * len(good)


def test_seal_and_check(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "a").write_bytes(b"alpha")
    (tmp_path / "in" / "b").write_bytes(b"beta")
    storage.seal(tmp_path)
    storage.check(tmp_path)
    subprocess.run(["sha256sum", "-c", "--quiet", storage.SUMS], cwd=tmp_path, check=True)
    for path in (tmp_path / "a", tmp_path / "in" / "b", tmp_path / storage.SUMS):
        good = path.read_bytes()
        flipped = [
            good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :]
            for place in range(len(good))
        ]
        for bad in (*flipped, *(good[:size] for size in range(len(good))), good + b"x"):
            path.write_bytes(bad)
            with pytest.raises(Damaged) as caught:
                storage.check(tmp_path)
            assert str(tmp_path) in _one_line(caught)
        path.unlink()
        with pytest.raises(Damaged):
            storage.check(tmp_path)
        path.write_bytes(good)
    (tmp_path / "c").write_bytes(b"")
    with pytest.raises(Damaged, match="is not in its SHA256SUMS"):
        storage.check(tmp_path)


def test_sealing_named_files_only(tmp_path):
    for name in "ab":
        (tmp_path / name).write_bytes(b"x")
    storage.seal(tmp_path, ("a",))
    (tmp_path / "b").write_bytes(b"y")
    storage.check(tmp_path, ("a",))
    (tmp_path / "a").write_bytes(b"y")
    with pytest.raises(Damaged):
        storage.check(tmp_path, ("a",))


def test_locks_within_one_process(tmp_path):
    with storage.lock(tmp_path):
        for shared in (False, True):
            with pytest.raises(Locked) as caught, storage.lock(tmp_path, shared=shared):
                pass
            assert f"process {os.getpid()} on " in _one_line(caught)
    with storage.lock(tmp_path, shared=True), storage.lock(tmp_path, shared=True):
        with pytest.raises(Locked), storage.lock(tmp_path):
            pass
        with storage.lock(tmp_path, name="other"):
            pass
    with storage.lock(tmp_path):
        pass


def test_a_lock_ends_with_its_killed_process(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(Locked, match=f"process {other.pid} on"), storage.lock(tmp_path):
            pass
        other.send_signal(signal.SIGKILL)
        other.wait()
        with storage.lock(tmp_path):
            pass


def test_trees_through_orbax(tmp_path):
    tree = {
        "bits": np.arange(6, dtype=np.uint8).reshape(2, 3),
        "mask": np.array([True, False]),
        "deep": {
            "half": np.asarray(jnp.arange(3, dtype=jnp.bfloat16)),
            "one": np.array(2, np.float32),
        },
    }
    finish = storage.save_tree(tmp_path / "t", tree)
    finish()
    like = {
        "bits": np.empty((2, 3), np.uint8),
        "mask": np.empty(2, bool),
        "deep": {"half": np.empty(3, jnp.bfloat16), "one": np.empty((), np.float32)},
    }
    again = storage.load_tree(tmp_path / "t", like)
    for name, leaf in storage.named_leaves(tree).items():
        loaded = storage.named_leaves(again)[name]
        assert loaded.dtype == leaf.dtype
        np.testing.assert_array_equal(loaded, leaf)
    with pytest.raises(Damaged) as caught:
        storage.load_tree(tmp_path / "nothing", like)
    assert str(tmp_path / "nothing") in _one_line(caught)


def test_a_lock_writes_to_nothing_but_its_own_file(tmp_path):
    """A link, a pipe and a user's file of the lock's name are refused and stay unchanged."""
    user = tmp_path / "user.txt"
    user.write_text("mine")
    run = tmp_path / "run"
    run.mkdir()
    for create in (
        lambda place: place.symlink_to(user),
        lambda place: os.mkfifo(place),
        lambda place: place.write_text("mine"),
    ):
        create(run / "lock")
        with pytest.raises(CheckpointError) as caught, storage.lock(run):
            pass
        assert str(run / "lock") in _one_line(caught)
        if (run / "lock").is_file():
            assert (run / "lock").read_text() == "mine"
        (run / "lock").unlink()
    with storage.lock(run):
        pass
    with storage.lock(run):  # the file of an earlier lock
        pass


def test_a_link_in_place_of_the_file_aside_is_not_followed(tmp_path):
    user = tmp_path / "user.txt"
    user.write_text("mine")
    (tmp_path / f".a.{os.getpid()}.tmp").symlink_to(user)
    storage.write_bytes(tmp_path / "a", b"new")
    assert user.read_text() == "mine" and (tmp_path / "a").read_bytes() == b"new"
    assert not (tmp_path / "a").is_symlink()


def test_pipes_and_devices_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(CheckpointError, match="is no regular file"):
            storage.read_bytes(path)
