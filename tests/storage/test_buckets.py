"""The folder of a run in a bucket keeps the promises of a folder on a disk."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import bucket_worker
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from slth_jax import storage
from slth_jax.storage import CheckpointError, Damaged, Locked, RunFolder, objects

CONFIG = {"seeds": 2, "grid": {"width": [4, 8]}}
TREE = {"a": {"x": np.arange(6.0, dtype=np.float32).reshape(2, 3)}, "b": np.int32(3)}


def run_folder(url, changes=None, **options):
    return RunFolder(url, {**CONFIG, **(changes or {})}, grows=("seeds",), **options)


def saved(url, name="a", tree=TREE):
    run = run_folder(url)
    with run.claim():
        run.save(name, tree, {"seconds": 1.5}, contents=[0])()
    return run


def test_a_piece_is_saved_and_loaded_with_its_notes(url):
    run = run_folder(url)
    with run.claim():
        assert run.recorded() is None and run.names() == []
        finish = run.save("a", TREE, {"seconds": 1.5}, contents=[0])
        assert not run.has("a")
        finish()
        assert run.names() == ["a"] and run.whole("a", [0]) and not run.has("b")
    loaded, notes = run_folder(url).load("a", TREE, contents=[0])
    chex.assert_trees_all_equal(loaded, TREE)
    assert notes["seconds"] == 1.5 and run.recorded() == CONFIG
    with pytest.raises(Damaged, match="belongs to another run or place"):
        run.load("a", TREE, contents=[1])
    with run.claim():
        run.drop("a")
        assert run.names() == []
    assert [path.name for path in storage.place(url).iterdir()] == ["config.json"]  # no claim


def test_dtypes_keys_and_shardings_survive(url):
    mesh = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("x"))
    tree = {
        "half": jnp.arange(8, dtype=jnp.bfloat16).reshape(8, 1),
        "key": jax.random.key(3, impl="threefry2x32"),
        "bits": np.array([True, False]),
        "wide": np.arange(3, dtype=np.complex128),
    }
    saved(url, tree=tree)
    like = {**tree, "half": jax.ShapeDtypeStruct((8, 1), jnp.bfloat16, sharding=sharding)}
    loaded, _ = run_folder(url).load("a", like, contents=[0])
    assert loaded["half"].sharding == sharding and loaded["half"].dtype == jnp.bfloat16
    chex.assert_trees_all_equal(loaded, tree)
    with pytest.raises(Damaged, match=r"has no whole array half \(9, 1\)"):
        run_folder(url).load("a", {**tree, "half": jnp.zeros((9, 1))}, contents=[0])


def test_large_arrays_are_several_objects(url, proxy, monkeypatch):
    monkeypatch.setattr(objects, "_PART", 16)
    run = saved(url)
    parts = list(storage.place(url).glob("**/*.parts/*"))
    assert len(parts) == 2
    chex.assert_trees_all_equal(run.load("a", TREE, contents=[0])[0], TREE)
    parts[0].write_bytes(parts[0].read_bytes()[:-1] + b"x")
    with pytest.raises(Damaged, match="is damaged: it has changed"):
        run.load("a", TREE, contents=[0])
    with run.claim():
        assert not run.whole("a", [0])
        run.save("a", TREE, contents=[0])()
        chex.assert_trees_all_equal(run.load("a", TREE, contents=[0])[0], TREE)
        proxy.plan = lambda method, path: (
            507 if "b.safetensors" in path and method != "GET" else None
        )
        with pytest.raises(CheckpointError, match="507 Insufficient Storage"):
            run.save("b", TREE)()  # its last object is not written
    assert len(list(storage.place(url).glob("**/b.parts/*"))) == 2
    with run.claim():
        assert run.names() == ["a"]
        run.drop("a")
    assert list(storage.place(url).glob("**/*.parts/*")) == []


def test_a_changed_object_is_moved_aside(url):
    run = saved(url)
    (place,) = storage.place(url).glob("pieces/*")
    place.write_bytes(place.read_bytes()[:-1] + b"x")
    with pytest.raises(Damaged, match="its checksum does not match"):
        run.load("a", TREE, contents=[0])
    with run.claim():
        assert not run.whole("a", [0]) and run.names() == []
    assert [path.name for path in (storage.place(url) / "damaged").iterdir()] == ["a.safetensors.0"]


def test_another_run_is_refused_and_a_longer_one_goes_on(url):
    saved(url)
    with (
        pytest.raises(CheckpointError, match=r"grid.width\[1\] is 8 there and 9 here"),
        run_folder(url, {"grid": {"width": [4, 9]}}).claim(),
    ):
        pass
    with run_folder(url, {"seeds": 3}).claim():
        run_folder(url, {"seeds": 3}).save("b", TREE)()
        run_folder(url).save("c", TREE)()
    assert run_folder(url).recorded()["seeds"] == 3


def test_a_live_owner_excludes_others_and_a_dead_one_does_not(url, monkeypatch):
    run = run_folder(url)
    with run.claim():
        for shard in (None, "1/2"):
            with (
                pytest.raises(Locked, match="is in use by process"),
                run_folder(url, shard=shard).claim(),
            ):
                pass
    with run_folder(url, shard="0/2").claim(), run_folder(url, shard="1/2").claim():
        for shard in (None, "0/2"):
            with pytest.raises(Locked), run_folder(url, shard=shard).claim():
                pass
    claim = {"owner": "process 1 on a host that is gone", "token": "x", "time": time.time()}
    for name in ("lock", "lock-0-of-2"):
        (storage.place(url) / name).write_bytes(json.dumps(claim).encode())
        begin = time.monotonic()
        with run_folder(url).claim():
            assert time.monotonic() - begin >= 1.0
    claim["time"] -= 2 * 3600
    (storage.place(url) / "lock").write_bytes(json.dumps(claim).encode())
    monkeypatch.setenv("SLTH_CLAIM_SECONDS", "60")
    with run_folder(url).claim():  # at once
        pass


def test_an_owner_notices_that_it_was_replaced(url):
    lock = storage.place(url) / "lock"
    run = run_folder(url)
    with (
        pytest.raises(CheckpointError, match="was taken over by another process while"),
        run.claim(),
    ):
        run.save("a", TREE)()
        lock.write_bytes(b"{}")
        time.sleep(1.1)
        run.save("b", TREE)()
    assert lock.read_bytes() == b"{}" and run.names() == ["a"]
    lock.unlink()
    with (
        pytest.raises(CheckpointError, match="was removed or replaced while it was in use"),
        run.claim(),
    ):
        lock.unlink()
        time.sleep(1.1)
        run.save("b", TREE)()


@pytest.mark.parametrize("fault", [503, "before", "after"])
def test_every_request_may_fail_once(url, proxy, fault):
    asked = set()

    def plan(method, path):
        request = method, re.sub("&tensorstore=.*", "", path)  # so that nothing is cached
        asked_before = request in asked
        asked.add(request)
        return None if asked_before else fault

    proxy.plan = plan
    run = saved(url)
    assert run.whole("a", [0])
    chex.assert_trees_all_equal(run.load("a", TREE, contents=[0])[0], TREE)
    proxy.plan = lambda method, path: None
    assert [path.name for path in storage.place(url).iterdir()] == ["config.json", "pieces"]


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (403, "cannot write .*: 403 Forbidden"),
        (507, "cannot write .*: 507 Insufficient Storage"),  # a full quota
        (503, "cannot write .*: 503 Service Unavailable"),  # for longer than attempts are made
    ],
)
def test_a_refusal_is_one_line_and_nothing_is_lost(url, proxy, status, words):
    saved(url)
    proxy.plan = lambda method, path: status if method in ("PUT", "POST") else None
    with pytest.raises(CheckpointError, match=words) as caught:
        saved(url, "b")
    assert "\n" not in str(caught.value)
    proxy.plan = lambda method, path: None
    chex.assert_trees_all_equal(saved(url, "b").load("a", TREE, contents=[0])[0], TREE)


def test_a_missing_bucket_or_object_is_one_line(url):
    other = url.replace("tickets", "nobody")
    for path, words in (
        (f"{url}/x", "cannot read .*/x: no such object"),
        (f"{other}/x", "404 Not Found|no such object"),
    ):
        with pytest.raises(CheckpointError, match=words):
            storage.read_bytes(path)
    with pytest.raises(CheckpointError, match="404 Not Found"), run_folder(other).claim():
        pass


def test_files_are_written_read_and_sealed(url):
    folder = storage.make_folder(url)
    storage.write_json(folder / "a.json", {"x": 1}, checksum=True)
    assert storage.read_json(f"{url}/a.json", checksum=True) == {"x": 1}
    assert storage.write_new(folder / "b", b"1") and not storage.write_new(folder / "b", b"2")
    with storage.writing(folder / "c.npy") as file:
        np.save(file, np.arange(3))
    np.testing.assert_array_equal(storage.read_numpy(folder / "c.npy"), np.arange(3))
    storage.seal(folder, ("a.json", "b"))
    storage.check(folder, ("a.json", "b"))
    storage.write_bytes(folder / "b", b"3")
    with pytest.raises(Damaged, match="its checksum does not match"):
        storage.check(folder, ("a.json", "b"))
    with pytest.raises(ZeroDivisionError), storage.writing(folder / "d") as file:
        file.write(b"x" * (1 // 0))
    assert not (folder / "d").exists()
    copy = storage.fetched(folder, ("*.json",))
    assert [path.name for path in copy.iterdir()] == ["a.json"]
    storage.remove(folder)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("gs://bucket/run", "gs://bucket/run"),
        ("s3://bucket//a/./b/", "s3://bucket/a/b"),
        (Path("gs://bucket/run/a"), "gs://bucket/run/a"),  # pathlib drops a slash
        ("run/a", "run/a"),
    ],
)
def test_the_kind_of_a_path_is_chosen_by_its_scheme(path, expected):
    assert str(storage.place(path)) == expected


@pytest.mark.parametrize("path", ["http://x/y", "gs://", "gs://UPPER/x", "s3://bucket/../x"])
def test_other_addresses_are_refused(path):
    with pytest.raises(ValueError, match="path must be a path of this machine or gs://BUCKET"):
        storage.place(path)


@pytest.mark.slow
def test_two_processes_save_their_shards_and_one_reads_them(url):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "2", "JAX_ENABLE_COMPILATION_CACHE": "0"}
    workers = [
        subprocess.Popen(
            [sys.executable, bucket_worker.__file__, str(index), port, url],
            env={**environment, "PYTHONPATH": str(Path(__file__).parents[2])},
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
    assert [worker.returncode for worker in workers] == [0, 0], texts
    parts = [path.name for path in storage.place(url).glob("**/*.parts/*")]
    assert len(parts) == 2  # a part per process; their tables are gone
    tree = {
        "sharded": np.arange(24, dtype=np.float32).reshape(8, 3) + 1,
        "replicated": np.arange(3, dtype=np.int32) + 1,
        "host": np.arange(5) + 1,
    }
    loaded, notes = RunFolder(url, {"x": 1}).load("b", tree)
    chex.assert_trees_all_equal(loaded, tree)
    assert notes["step"] == 2
