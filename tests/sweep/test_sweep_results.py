"""Rows and arrays of sweeps against single trials one by one."""

import itertools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sweep_trials import CHEAP, GRID, KW, cheap, same, trial

from slth_jax import sweep
from slth_jax.sweep import plan as sweep_plan


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
        result, mask = reference.arrays(index), arrays["layer"]["mask"]
        assert result["layer"]["mask"].dtype == bool
        np.testing.assert_array_equal(result["layer"]["mask"][: len(mask)], mask)
        assert not result["layer"]["mask"][len(mask) :].any()
        np.testing.assert_allclose(result["sum"], arrays["sum"], rtol=1e-5, atol=1e-6)


def test_results_do_not_depend_on_the_chunk_or_on_what_else_is_swept(reference):
    same(sweep.run(trial, **{**KW, "chunk": 1000}), reference)
    alone = sweep.run(trial, **{**KW, "grid": {"scale": [2.0], "width": [9]}, "seeds": [5]})
    (index,) = [
        i
        for i, row in enumerate(reference.rows)
        if (row["scale"], row["width"]) == (2.0, 9) and row["seed"] == 5
    ]
    assert alone.rows == [reference.rows[index]]
    chex.assert_trees_all_equal(alone.arrays(0), reference.arrays(index))


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
    for result in (results, loaded):
        assert result.nonfinite == [2, 3, 4, 5]
        bad = [result.row(index) for index in result.nonfinite]
        assert [(row["x"], row["seed"]) for row in bad] == [(0, 8), (0, 9), (-1, 8), (-1, 9)]
        assert [row["error"] for row in bad[:2]] == [-math.inf] * 2
        assert all(math.isnan(row["error"]) for row in bad[2:])
        assert result.row(7)["error"] == pytest.approx(math.log(2))
    assert "0.0,8,-inf,3\n" in (tmp_path / "table.csv").read_text()


def test_narrow_numbers_that_are_not_finite_are_counted():
    def trial(key, hparams):
        value = 1 / hparams["x"]
        return {"half": value.astype(jnp.bfloat16), "eight": value.astype(jnp.float8_e5m2)}

    results = sweep.run(trial, grid={"x": [1.0, 0.0, 2.0]}, seeds=1)
    assert results.nonfinite == [1]
    assert results.row(2)["half"] == 0.5 and isinstance(results.row(2)["eight"], float)
