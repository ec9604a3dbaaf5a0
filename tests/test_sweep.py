"""Sweeps against single trials one by one, and against all that can go wrong with a folder."""

import errno
import itertools
import math
import os
import shutil
import signal
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from slth_jax import construction, initializers, storage, sweep
from slth_jax.storage import CheckpointError, Damaged, Locked
from slth_jax.sweep import plan as sweep_plan
from slth_jax.sweep import program as sweep_program


def trial(key, hparams):
    """A little of everything: products, transcendental functions, a sort, a loop, padding."""
    width, padded = hparams["width"], hparams["width_max"]
    units = jax.vmap(lambda j: jax.random.normal(jax.random.fold_in(key, j), (3,)))
    x = jnp.where(jnp.arange(padded)[:, None] < width, units(jnp.arange(padded)), 0)
    # Summed in order: padding with zeros then changes nothing, to the bit.
    total, _ = jax.lax.scan(
        lambda a, row: (a + row[:, None] * row[None], None), jnp.zeros((3, 3)), x
    )
    steps, _ = jax.lax.while_loop(
        lambda c: c[1] > 1.0, lambda c: (c[0] + 1, c[1] * 0.7), (0, jnp.abs(total).sum())
    )
    error = hparams["scale"] * jnp.exp(-jnp.linalg.norm(jax.nn.softmax(total) @ total))
    metrics = {"error": error, "steps": steps, "sorted": jnp.sort(x[0])}
    return metrics, {"layer": {"mask": x > 0.5}, "sum": total}


GRID = {"scale": [0.5, 2.0], "width": [3, 8, 9]}
KW = {
    "grid": GRID,
    "seeds": 7,
    "padded": ["width"],
    "chunk": 6,
    "batch": 2,
}  # 42 trials, 2 programs


def cheap(key, hparams):
    """A trial that compiles in no time."""
    return {"error": jax.random.uniform(key) * hparams["scale"]}, jax.random.bits(
        key, (5,)
    ) % 2 == 0


CHEAP = {"grid": {"scale": [0.5, 2.0, 3.0]}, "seeds": 5, "chunk": 4, "batch": 2}


def mesh_of(count):
    return jax.make_mesh(
        (count,), ("trial",), axis_types=(AxisType.Auto,), devices=jax.devices()[:count]
    )


def same(left, right):
    assert left.rows == right.rows
    for index in range(len(left)):
        jax.tree.map(np.testing.assert_array_equal, left.arrays(index), right.arrays(index))


@pytest.fixture(scope="module")
def reference():
    return sweep.run(trial, mesh=mesh_of(1), **KW)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "out"
    return out, sweep.run(cheap, out=out, **CHEAP)


@pytest.fixture
def folder(finished, tmp_path):
    """A copy of a finished sweep's folder."""
    return shutil.copytree(finished[0], tmp_path / "out")


@pytest.fixture
def computed(monkeypatch):
    """The trials that are computed, in order."""
    trials = []
    start = sweep_program.Program.start

    def counting(self, part):
        out = start(self, part)
        trials.extend(part.tolist())
        return out

    monkeypatch.setattr(sweep_program.Program, "start", counting)
    return trials


def test_rows_are_those_of_single_trials(reference):
    points = [dict(zip(GRID, values, strict=True)) for values in itertools.product(*GRID.values())]
    expected = [(point, seed) for point in points for seed in range(7)]
    assert len(reference) == len(expected) and reference.missing == 0
    for index in range(0, len(expected), 5):
        point, seed = expected[index]
        key = jax.random.key(seed, impl="threefry2x32")
        metrics, arrays = trial(key, {**point, "width_max": point["width"]})
        row = reference.row(index)
        assert {name: row[name] for name in point} == point and row["seed"] == seed
        assert row["steps"] == int(metrics["steps"])
        np.testing.assert_allclose(row["error"], metrics["error"], rtol=1e-5)
        # A normal draw that is compiled may round its inverse error function differently.
        np.testing.assert_allclose(row["sorted"], metrics["sorted"], rtol=1e-6)
        got, mask = reference.arrays(index), arrays["layer"]["mask"]
        assert got["layer"]["mask"].dtype == bool
        np.testing.assert_array_equal(got["layer"]["mask"][: len(mask)], mask)
        assert not got["layer"]["mask"][len(mask) :].any()
        np.testing.assert_allclose(got["sum"], arrays["sum"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("count", [2, 4, 8])
def test_results_do_not_depend_on_the_number_of_devices(reference, count):
    same(sweep.run(trial, mesh=mesh_of(count), **KW), reference)


def test_tickets_do_not_depend_on_the_number_of_devices():
    target = initializers.theory_attention(
        jax.random.key(1), num_heads=1, d_in=2, d_out=1, n_k=2, n_v=2
    )

    def prune(key, hparams):
        width, padded = hparams["width"], hparams["width_max"]
        source = initializers.theory_attention(
            key, num_heads=1, d_in=2, d_out=1, n_k=width, n_v=width, padded=padded
        )
        masks, report = construction.prune_attention(source, target, with_report=True)
        return {"error": jnp.maximum(report.qk.max_error, report.vo.max_error)}, masks

    # Widths whose square roots XLA's ways to divide round differently.
    sweeps = {"grid": {"width": [9, 11, 14, 21, 22]}, "seeds": 6, "padded": ["width"], "batch": 2}
    one, four = (
        sweep.run(prune, mesh=mesh_of(count), buckets="largest", **sweeps) for count in (1, 4)
    )
    same(one, four)


def test_results_do_not_depend_on_the_chunk_or_on_what_else_is_swept(reference):
    same(sweep.run(trial, **{**KW, "chunk": 1000}), reference)
    alone = sweep.run(trial, **{**KW, "grid": {"scale": [2.0], "width": [9]}, "seeds": [5]})
    (index,) = [
        i
        for i, row in enumerate(reference.rows)
        if (row["scale"], row["width"]) == (2.0, 9) and row["seed"] == 5
    ]
    assert alone.rows == [reference.rows[index]]
    jax.tree.map(np.testing.assert_array_equal, alone.arrays(0), reference.arrays(index))


def test_a_mesh_with_other_axes(reference):
    mesh = jax.make_mesh((4, 2), ("trial", "model"), axis_types=(AxisType.Auto,) * 2)
    same(sweep.run(trial, mesh=mesh, **KW), reference)


def test_saved_and_loaded_results_are_the_same(reference, tmp_path):
    same(sweep.run(trial, out=tmp_path, **KW), reference)
    same(sweep.run(trial, out=tmp_path, **KW), reference)
    loaded = sweep.load(tmp_path)
    same(loaded, reference)
    assert loaded.trials.tolist() == list(range(42))


def test_static_names_are_plain_values_and_padded_ones_are_bounded():
    seen = []

    def trial(key, hparams):
        seen.append(hparams)
        assert isinstance(hparams["kind"], str) and hparams["depth"] in (1, 2)
        assert isinstance(hparams["scale"], jax.core.Tracer) and hparams["scale"].ndim == 0
        assert hparams["width"].dtype == jnp.int32 and hparams["on"].dtype == bool
        return {"error": jnp.zeros(hparams["depth"]).sum() + hparams["width"]}

    grid = {"kind": ["a", "b"], "depth": [1, 2], "scale": [1, 2.5], "width": [3, 5, 40]}
    grid["on"] = [True]
    results = sweep.run(trial, grid=grid, seeds=[4], static=["depth"], padded=["width"])
    # Traced once a program.
    assert len(seen) == 2 * 2 * 2
    assert {hparams["width_max"] for hparams in seen} == {8, 128}
    assert [row["error"] for row in results.rows] == [row["width"] for row in results.rows]
    assert {row["seed"] for row in results.rows} == {4}


def test_points_may_be_listed():
    points = [{"scale": 2.0}, {"scale": 0.5}, {"scale": 1.0}]
    results = sweep.run(cheap, grid=points, seeds=2)
    assert [row["scale"] for row in results.rows] == [2.0, 2.0, 0.5, 0.5, 1.0, 1.0]


def test_a_sweep_over_seeds_alone():
    results = sweep.run(lambda key, _: {"u": jax.random.uniform(key)}, grid={}, seeds=3)
    assert [list(row) for row in results.rows] == [["seed", "u"]] * 3


@pytest.mark.parametrize(
    ("buckets", "expected"),
    [(None, {8, 32, 128}), ("largest", {100}), ([9, 200], {9, 200}), ({"width": [100]}, {100})],
)
def test_buckets(buckets, expected):
    grid = {"width": [1, 8, 9, 100]}
    plan = sweep_plan.make_plan(seeds=1, grid=grid, padded=["width"], buckets=buckets)
    assert {group.padded["width"] for group in plan.groups} == expected
    for group in plan.groups:
        assert all(grid["width"][point] <= group.padded["width"] for point in group.points)


def test_every_trial_is_in_one_chunk():
    plan = sweep_plan.make_plan(
        seeds=1001, grid={"a": list(range(99)), "b": ["x", "y"]}, static=["b"]
    )
    trials = np.concatenate([chunk.trials for chunk in plan.chunks])
    assert sorted(trials) == list(range(plan.size)) and plan.size == 1001 * 99 * 2
    assert max(len(chunk.trials) for chunk in plan.chunks) <= sweep_plan.MAX_CHUNK
    assert [chunk.number for chunk in plan.chunks] == list(range(len(plan.chunks)))


def test_seeds_make_the_keys_that_jax_makes():
    seeds = [0, 1, 2**31 - 1, 2**31, 2**32 - 1]
    results = sweep.run(lambda key, _: {"bits": jax.random.bits(key)}, grid=[{"a": 0}], seeds=seeds)
    expected = [int(jax.random.bits(jax.random.key(s, impl="threefry2x32"))) for s in seeds]
    assert [row["bits"] for row in results.rows] == expected


def test_table_has_plain_columns(reference):
    table = reference.table()
    columns = ["scale", "width", "seed", "error", "sorted[0]", "sorted[1]", "sorted[2]", "steps"]
    assert list(table) == columns
    assert all(column.shape == (42,) for column in table.values())
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(table)
    means = frame.groupby(["scale", "width"])["error"].mean()
    assert means.shape == (6,)
    mixed = sweep.run(
        lambda key, h: {"m": jnp.ones(())}, grid={"a": [None, 1, "x", (1, 2)]}, seeds=1
    )
    assert pandas.DataFrame(mixed.table())["a"].tolist() == [None, 1, "x", (1, 2)]


def test_arrays_of_any_kind():
    def trial(key, hparams):
        arrays = [jnp.zeros((0, 3)), {"half": jnp.ones(2, jnp.bfloat16)}, jnp.ones((), bool)]
        return {"a": jnp.ones(())}, arrays

    arrays = sweep.run(trial, grid={"x": [1]}, seeds=1).arrays(0)
    assert arrays["0"].shape == (0, 3) and arrays["1"]["half"].dtype == jnp.bfloat16
    assert arrays["2"].shape == () and arrays["2"].dtype == bool and arrays["2"]
    single = sweep.run(cheap, **CHEAP).arrays(3)
    assert single.shape == (5,) and single.dtype == bool


def test_arrays_of_any_kind_on_disk(tmp_path):
    def trial(key, hparams):
        arrays = [jnp.zeros((0, 3)), {"half": jnp.ones(2, jnp.bfloat16)}, jnp.ones((), bool)]
        return {"a": jnp.ones(())}, arrays

    arrays = sweep.run(trial, grid={"x": [1]}, seeds=1, out=tmp_path).arrays(0)
    assert arrays["0"].shape == (0, 3) and arrays["1"]["half"].dtype == jnp.bfloat16
    assert arrays["2"].dtype == bool and arrays["2"]


def test_trials_that_are_not_finite_are_recorded(tmp_path):
    def trial(key, hparams):
        return {"error": jnp.log(hparams["x"]), "n": jnp.int32(3)}

    grid = {"x": [1.0, 0.0, -1.0, 2.0]}
    results = sweep.run(trial, grid=grid, seeds=[8, 9], out=tmp_path, chunk=2)
    loaded = sweep.load(tmp_path)
    for got in (results, loaded):
        assert got.nonfinite == [2, 3, 4, 5]
        bad = [got.row(index) for index in got.nonfinite]
        assert [(row["x"], row["seed"]) for row in bad] == [(0, 8), (0, 9), (-1, 8), (-1, 9)]
        assert [row["error"] for row in bad[:2]] == [-math.inf] * 2
        assert all(math.isnan(row["error"]) for row in bad[2:])
        assert got.row(7)["error"] == pytest.approx(math.log(2))
    assert "0.0,8,-inf,3\n" in (tmp_path / "table.csv").read_text()


# Resuming


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


# What is recorded, and when


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


# Shards


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


# Damage


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
    (path, *_) = (folder / "chunks" / "000001" / "record" / "state" / "d").iterdir()
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
    with pytest.raises(CheckpointError, match="cannot read"):
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


# Bad arguments


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seeds": 0}, "seeds must be an integer >= 1, got 0"),
        ({"seeds": []}, "seeds must be a count or at least one integer, got none"),
        ({"seeds": [1, 1]}, "seeds must be different"),
        ({"seeds": [-1]}, r"seeds must be an integer in \[0, 4294967295\], got -1"),
        ({"seeds": [0.5]}, r"seeds must be an integer in .*, got 0.5"),
        ({"grid": {"scale": []}}, "grid must be at least one point, got none"),
        ({"grid": []}, "grid must be at least one point, got none"),
        ({"grid": {"scale": "abc"}}, r"grid\['scale'\] must be a sequence of values, got 'abc'"),
        ({"grid": {"scale": 3}}, r"grid\['scale'\] must be a sequence of values, got 3"),
        ({"grid": {"scale": [object]}}, r"grid\['scale'\] must be made of numbers"),
        ({"grid": {"scale": [1], "seed": [1]}}, "grid must be named by strings other than 'seed'"),
        ({"grid": [{"scale": 1}, {"size": 1}]}, r"grid must be points of the names \['scale'\]"),
        ({"grid": {"scale": [2**40]}}, "must be within int32, got 1099511627776"),
        ({"static": ["size"]}, "static must be one of 'scale', got 'size'"),
        ({"padded": ["size"]}, "padded must be one of 'scale', got 'size'"),
        ({"padded": ["scale"]}, r"grid\['scale'\] must be an integer >= 1, got 0.5"),
        ({"chunk": 0}, "chunk must be an integer >= 1, got 0"),
        ({"batch": 5}, r"batch must be an integer in \[1, 4\], got 5"),
        ({"shard": "3/3"}, "shard must be 'i/n' with 0 <= i < n, got '3/3'"),
        ({"shard": "1"}, "shard must be 'i/n'"),
    ],
)
def test_bad_arguments_are_one_line(changes, words):
    with pytest.raises(ValueError, match=words) as caught:
        sweep.run(cheap, **{**CHEAP, **changes})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (lambda h: jnp.ones(()), "trial's result must be a mapping of metrics"),
        (lambda h: {}, "trial's result must be a mapping of metrics"),
        (lambda h: {"scale": h["scale"]}, r"trial's metrics must be named unlike the grid"),
        (lambda h: {h["kind"]: h["scale"]}, "trial's metrics must be"),
    ],
)
def test_bad_trials_are_one_line(result, words):
    grid = {"scale": [1.0], "kind": ["a", "b"]}
    with pytest.raises(ValueError, match=words) as caught:
        sweep.run(lambda key, hparams: result(hparams), grid=grid, seeds=1)
    assert "\n" not in str(caught.value)


def test_buckets_must_hold_the_largest():
    with pytest.raises(ValueError, match="buckets must be up to at least 20, the largest width"):
        sweep_plan.make_plan(seeds=1, grid={"width": [3, 20]}, padded=["width"], buckets=[8, 16])
