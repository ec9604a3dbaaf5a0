"""Damaged files, full disks, and folders that cannot be written."""

import errno
import itertools
import os
import shutil
import subprocess

import pytest
from sweep_trials import CHEAP, cheap, same

from slth_jax import storage, sweep
from slth_jax.storage import CheckpointError, Damaged


def damages(good):
    middle = len(good) // 2
    for place in sorted({0, middle, len(good) - 1}):
        if good:
            yield good[:place] + bytes([good[place] ^ 0x04]) + good[place + 1 :]
    yield good[:-1] if good else b"x"


def test_damage_to_any_file_is_noticed_and_repaired(finished, folder, caplog):
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "lock"]
    chunk = [path for path in paths if "000001" in path.parts]
    assert len(chunk) > 5
    for path in [*chunk, folder / "table.csv", folder / storage.SUMS]:
        good = path.read_bytes()
        for bad in damages(good):
            path.write_bytes(bad)
            caplog.clear()
            if path in chunk:
                with pytest.raises(Damaged) as caught:
                    sweep.load(folder)
                message = str(caught.value)
            else:
                same(sweep.load(folder), finished[1])
                (message,) = [record.getMessage() for record in caplog.records]
            assert "\n" not in message
            assert str(path if path.name != storage.SUMS else path.parent) in message
        path.write_bytes(good)
    config = folder / "config.json"
    good = config.read_bytes()
    for bad in damages(good):
        config.write_bytes(bad)
        for action in (lambda: sweep.load(folder), lambda: sweep.run(cheap, out=folder, **CHEAP)):
            if bad[:-1] == good[:-1] or bad == good[:-1]:
                continue  # only the line's end: harmless
            with pytest.raises(Damaged) as caught:
                action()
            assert "\n" not in str(caught.value) and str(config) in str(caught.value)


def test_a_damaged_chunk_is_set_aside_and_computed_again(finished, folder, computed, caplog):
    (path, *_) = (folder / "chunks" / "000001" / "arrays" / "state" / "d").iterdir()
    bad = path.read_bytes()[:-1]
    path.write_bytes(bad)
    same(sweep.run(cheap, out=folder, **CHEAP), finished[1])
    assert sorted(computed) == [4, 5, 6, 7]
    (message,) = [record.getMessage() for record in caplog.records]
    assert str(path) in message and "computed again" in message and "\n" not in message
    kept = folder / "damaged" / "000001.0" / path.relative_to(folder / "chunks" / "000001")
    assert kept.read_bytes() == bad
    same(sweep.load(folder), finished[1])


def test_results_without_a_configuration_are_left_alone(folder):
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has results but .* is missing"):
        sweep.run(cheap, out=folder, **CHEAP)
    with pytest.raises(CheckpointError, match=r"has results but .* is missing"):
        sweep.load(folder)


def test_a_full_disk_loses_nothing(finished, tmp_path, monkeypatch):
    real = storage.files.os.fsync

    def full(fd):
        if next(count) > limit:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(fd)

    for limit in (1, 5, 14, 23, 40):  # noqa: B007
        count = itertools.count()
        monkeypatch.setattr(storage.files.os, "fsync", full)
        with pytest.raises(CheckpointError, match=r"cannot write .*: No space left") as caught:
            sweep.run(cheap, out=tmp_path, **CHEAP)
        assert "\n" not in str(caught.value)
        monkeypatch.setattr(storage.files.os, "fsync", real)
    same(sweep.run(cheap, out=tmp_path, **CHEAP), finished[1])


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system that is full after 320 kB, and a function that mounts it again otherwise."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)]
        return subprocess.run(command, capture_output=True).returncode

    if mount("size=320k"):
        pytest.skip("a file system can be mounted by root only")
    yield disk, mount
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_is_really_full_and_then_read_only(finished, tiny_disk):
    disk, mount = tiny_disk
    with pytest.raises(
        CheckpointError, match=r"cannot write .*: No space left on device"
    ) as caught:
        sweep.run(cheap, out=disk / "out", **CHEAP)
    assert "\n" not in str(caught.value)
    done = 15 - sweep.load(disk / "out", partial=True).missing
    assert 0 < done < 15
    assert mount("remount,size=2m") == 0
    same(sweep.run(cheap, out=disk / "out", **CHEAP), finished[1])
    assert mount("remount,ro") == 0
    for out in (disk / "out", disk / "new"):
        with pytest.raises(CheckpointError, match=r"cannot .*: Read-only file system"):
            sweep.run(cheap, out=out, **CHEAP)
    same(sweep.load(disk / "out"), finished[1])


def test_folders_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_bytes(b"mine")
    for out in (tmp_path / "file", tmp_path / "file" / "in", "/proc/self/nothing"):
        with pytest.raises(CheckpointError, match="cannot make the folder") as caught:
            sweep.run(cheap, out=out, **CHEAP)
        assert "\n" not in str(caught.value) and str(out) in str(caught.value)
    assert (tmp_path / "file").read_bytes() == b"mine"


def in_first_form(chunk):
    """Turn a chunk into one of the first versions: no notes, its arrays under another name."""
    (chunk / "notes.json").unlink()
    (chunk / "arrays").rename(chunk / "record")
    storage.seal(chunk)


def test_chunks_of_the_first_versions_are_read_and_continued(finished, folder, computed):
    for name in ("000000", "000001"):
        in_first_form(folder / "chunks" / name)
    shutil.rmtree(folder / "chunks" / "000002")
    same(sweep.run(cheap, out=folder, **CHEAP), finished[1])
    assert sorted(computed) == [8, 9, 10, 11]
    same(sweep.load(folder), finished[1])


def test_whole_chunks_in_a_wrong_place_are_not_believed(finished, folder, tmp_path, computed):
    """Swapped chunks, and a chunk of the same trial with other seeds: every file is whole."""
    chunks = folder / "chunks"
    (chunks / "000000").rename(chunks / "aside")
    (chunks / "000001").rename(chunks / "000000")
    (chunks / "aside").rename(chunks / "000001")
    other = tmp_path / "other"
    sweep.run(cheap, out=other, **{**CHEAP, "seeds": [5, 6, 7, 8, 9]})
    shutil.rmtree(chunks / "000002")
    shutil.copytree(other / "chunks" / "000002", chunks / "000002")
    with pytest.raises(Damaged, match="belongs to another sweep or place"):
        sweep.load(folder)
    computed.clear()
    same(sweep.run(cheap, out=folder, **CHEAP), finished[1])
    assert sorted(computed) == list(range(12))
    assert len(list((folder / "damaged").iterdir())) == 3
