"""Subset sums against brute force and float64 meet-in-the-middle; their contract with JAX."""

import functools
import itertools
import math
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import refusals

from slth_jax import subset_sum
from slth_jax.subset_sum import batch as batches
from slth_jax.subset_sum import solver

pytestmark = pytest.mark.usefixtures("compiled_in_full")
B = 256


def products(n, batch=B, seed=0):
    rng = np.random.default_rng(seed)
    samples = rng.uniform(-1, 1, (batch, n)) * rng.uniform(-1, 1, (batch, n))
    return samples.astype(np.float32), rng.uniform(-0.5, 0.5, batch).astype(np.float32)


def adversarial(n, batch, seed=0):
    """Many kinds of instances, in turn; the values anywhere in reach, exact, zero or beyond."""
    rng = np.random.default_rng(seed)
    samples = rng.uniform(-1, 1, (batch, n))
    kinds = [
        lambda x: x * (rng.uniform(size=n) < 0.5),
        lambda x: np.full(n, x[0]),
        lambda x: np.sign(x) * 2.0 ** rng.integers(-10, 10, n),
        lambda x: 2.0 ** np.arange(n),
        lambda x: x * 10.0 ** rng.integers(-30, 30, n),
        lambda x: x * 1e-39,
        lambda x: x * 1e30,
        lambda x: np.abs(x),
        lambda x: -np.abs(x),
        lambda x: np.round(3 * x),
        lambda x: np.repeat(x, 2)[:n],
        lambda x: x / np.abs(x) ** 2,
        lambda x: np.zeros(n),
        lambda x: np.where(np.arange(n) == 1 % n, 1e6, 1e-6) * x,
    ]
    for i in range(batch):
        samples[i] = kinds[i % len(kinds)](samples[i])
    samples = samples.astype(np.float32)
    low = np.sum(np.minimum(samples, 0), axis=1, dtype=np.float64)
    high = np.sum(np.maximum(samples, 0), axis=1, dtype=np.float64)
    reachable = np.sum(samples * (rng.uniform(size=(batch, n)) < 0.5), axis=1, dtype=np.float64)
    anywhere = rng.uniform(low, np.maximum(high, low))
    values = [anywhere, reachable, np.zeros(batch), high, low, 1.5 * high + 1, 1.5 * low - 1]
    pick = rng.integers(len(values), size=batch)
    return samples, np.choose(pick, values).astype(np.float32)


def both(n, batch=B):
    """Return `batch` products and as many adversarial instances."""
    return map(np.concatenate, zip(products(n, batch), adversarial(n, batch), strict=True))


def sums(samples):
    listed = np.zeros(1)
    for sample in samples:
        listed = np.concatenate([listed, listed + sample])
    return listed


def least_error(samples, value):
    """Return the least error in float64: all subsets, or two halves beyond 16 samples."""
    errors = []
    for s, v in zip(samples.astype(np.float64), value.astype(np.float64), strict=True):
        if s.size <= 16:
            errors.append(np.min(np.abs(v - sums(s))))
            continue
        a, missing = np.sort(sums(s[: s.size // 2])), v - sums(s[s.size // 2 :])
        after = np.clip(np.searchsorted(a, missing), 1, a.size - 1)
        errors.append(min(np.min(np.abs(a[after + k] - missing)) for k in (-1, 0)))
    return np.array(errors)


def true_error(samples, value, mask):
    kept = np.where(mask, samples.astype(np.float64), 0)
    return np.array([abs(float(v) - math.fsum(k)) for v, k in zip(value, kept, strict=True)])


def tolerance(samples, unit=4e-7):
    return unit * (1 + np.sum(np.abs(samples.astype(np.float64)), axis=1))


assert_same = chex.assert_trees_all_equal


@pytest.mark.parametrize(
    ("n", "batch", "draw"),
    [
        (1, 1024, products),
        (1, 1024, adversarial),
        (5, 2048, adversarial),
        (11, 4096, products),
        (11, 4096, adversarial),
        (16, 512, adversarial),
        (24, 2 * B, lambda n, batch: both(n)),
    ],
)
def test_no_subset_is_closer(n, batch, draw):
    samples, value = draw(n, batch)
    solution = subset_sum.solve(samples, value)
    measured = true_error(samples, value, solution.mask)
    assert np.all(measured <= least_error(samples, value) + tolerance(samples))
    assert np.all(np.abs(measured - solution.error) <= tolerance(samples))
    assert np.all(solution.optimal)
    assert not np.any(solution.mask & (np.abs(samples) < np.finfo(np.float32).tiny))


def test_up_to_thirty_samples_are_all_enumerated():
    samples, value = both(29, B // 2)
    solution = subset_sum.solve(samples, value)
    measured = true_error(samples, value, solution.mask)
    assert np.all(measured <= least_error(samples, value) + tolerance(samples))
    assert np.all(solution.optimal)


@pytest.mark.parametrize("draw", [products, adversarial])
def test_float64(draw):
    with jax.enable_x64(True):
        samples, value = (x.astype(np.float64) for x in draw(11, 1024))
        samples *= 1 + 1e-9 * np.arange(11)
        solution = subset_sum.solve(samples, value)
        assert solution.total.dtype == np.float64
        measured = true_error(samples, value, solution.mask)
    assert np.all(measured <= least_error(samples, value) + tolerance(samples, 1e-15))
    assert np.all(solution.optimal)


def test_total_and_error_are_those_of_the_mask():
    samples, value = both(24)
    mask, total, error, _ = map(np.asarray, subset_sum.solve(samples, value))
    exact = [math.fsum(row) for row in np.where(mask, samples.astype(np.float64), 0)]
    np.testing.assert_array_equal(total, np.asarray(exact, np.float32))
    # Whether a subnormal difference is flushed to zero is the hardware's choice.
    tiny = np.finfo(np.float32).tiny
    np.testing.assert_allclose(error, np.abs(value - total), rtol=0, atol=tiny)


def test_beyond_reach_takes_all_of_one_sign():
    samples, _ = products(11, 4096)
    high = np.sum(np.maximum(samples, 0), axis=1)
    low = np.sum(np.minimum(samples, 0), axis=1)
    np.testing.assert_array_equal(subset_sum.solve(samples, high + 1).mask, samples > 0)
    np.testing.assert_array_equal(subset_sum.solve(samples, low - 1).mask, samples < 0)


def test_no_samples():
    solution = subset_sum.solve(np.zeros((3, 0), np.float32), np.array([0.0, 1.0, -2.0]))
    assert solution.mask.shape == (3, 0)
    np.testing.assert_array_equal(solution.error, [0, 1, 2])
    assert subset_sum.solve(np.zeros((0, 5), np.float32), np.zeros(0)).mask.shape == (0, 5)
    assert subset_sum.solve(np.ones(1), np.float32(0.7)).mask.shape == (1,)


def greedy_error(samples, value):
    """Keep, from the largest down, each sample that brings the sum closer."""
    errors = []
    for s, v in zip(samples.astype(np.float64), value.astype(np.float64), strict=True):
        for sample in s[np.argsort(-np.abs(s), kind="stable")]:
            if abs(v - sample) < abs(v):
                v -= sample
        errors.append(abs(v))
    return np.array(errors)


def large(kind, n, batch, seed=0):
    rng = np.random.default_rng(seed)
    samples = {
        "products": lambda: rng.uniform(-1, 1, (2, batch, n)).prod(0),
        "positive": lambda: rng.uniform(0, 1, (2, batch, n)).prod(0),
        "negative": lambda: -rng.uniform(0, 1, (2, batch, n)).prod(0),
        "of one size": lambda: rng.uniform(1, 2, (batch, n)),
        "mostly zero": lambda: rng.uniform(-1, 1, (batch, n)) * (rng.random((batch, n)) < 0.3),
        "heavy tails": lambda: rng.lognormal(0, 2, (batch, n)),
    }[kind]()
    samples = samples.astype(np.float32)
    low = np.sum(np.minimum(samples, 0), axis=1, dtype=np.float64)
    high = np.sum(np.maximum(samples, 0), axis=1, dtype=np.float64)
    # Not at the ends, where only a few subsets are and the best of them may be far away.
    return samples, (low + (high - low) * rng.uniform(0.1, 0.9, batch)).astype(np.float32)


KINDS = ("products", "positive", "negative", "of one size", "mostly zero")


@pytest.mark.parametrize(
    ("kind", "n"), [*itertools.product((*KINDS, "heavy tails"), [200]), ("products", 4096)]
)
def test_many_samples(kind, n):
    samples, value = large(kind, n, 64)
    solution = subset_sum.solve(samples, value)
    measured = true_error(samples, value, solution.mask)
    assert np.all(measured <= greedy_error(samples, value) + tolerance(samples, 1e-7))
    assert np.all(np.abs(measured - solution.error) <= tolerance(samples, 1e-7))
    close = measured <= 4e-7 * np.maximum(np.abs(value), np.max(np.abs(samples), axis=1))
    # A huge sample opens gaps between reachable sums: rarely, but then nothing helps.
    assert np.mean(close) >= (0.9 if kind == "heavy tails" else 1.0)


def padded(samples, value, n):
    solution = subset_sum.solve(np.pad(samples, ((0, 0), (0, n - samples.shape[1]))), value)
    assert not np.any(solution.mask[:, samples.shape[1] :])
    return solution._replace(mask=solution.mask[:, : samples.shape[1]])


@pytest.mark.parametrize("n", range(3, 25))
def test_zeros_at_the_end_change_nothing(n):
    samples, value = both(n)
    assert_same(padded(samples, value, 30), padded(samples, value, 64))
    if n in (3, 24):
        assert_same(padded(samples, value, n), padded(samples, value, 64))


def test_zeros_at_the_end_change_nothing_beyond_enumeration():
    samples, value = both(40)
    assert_same(padded(samples, value, 40), padded(samples, value, 64))


SAMPLES, VALUE = adversarial(4, 160)


def test_neither_batch_nor_place_matters():
    together = subset_sum.solve(SAMPLES, VALUE)
    order = np.random.default_rng(0).permutation(160)
    shuffled = subset_sum.solve(SAMPLES[order], VALUE[order])
    assert_same(jax.tree.map(lambda x: x[order], together), shuffled)
    alone = [subset_sum.solve(SAMPLES[i], VALUE[i]) for i in range(0, 160, 10)]
    tenth = jax.tree.map(lambda x: x[::10], together)
    assert_same(tenth, jax.tree.map(lambda *x: jnp.stack(x), *alone))


def test_transformations_give_the_same_bits():
    together = subset_sum.solve(SAMPLES, VALUE)
    assert_same(together, jax.vmap(subset_sum.solve)(SAMPLES, VALUE))
    with jax.checking_leaks():
        assert_same(together, jax.jit(lambda s, v: subset_sum.solve(s, v))(SAMPLES, VALUE))
    blocks = subset_sum.solve(SAMPLES.reshape(4, 40, 4), VALUE.reshape(4, 40))
    assert_same(jax.tree.map(lambda x: x.reshape(160, *x.shape[2:]), blocks), together)
    mapped = jax.vmap(subset_sum.solve, in_axes=(None, 0))(SAMPLES[9], VALUE)
    assert_same(mapped, subset_sum.solve(np.tile(SAMPLES[9], (160, 1)), VALUE))


def test_a_product_fused_into_the_call_changes_nothing():
    u, v = np.random.default_rng(0).uniform(-1, 1, (2, 160, 4)).astype(np.float32)
    inside = jax.jit(lambda u, v: subset_sum.solve(u * v, VALUE))(u, v)
    assert_same(inside, subset_sum.solve(u * v, VALUE))


def test_each_device_solves_its_shard():
    mesh = jax.make_mesh((8,), ("trial",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.NamedSharding(mesh, jax.P("trial"))
    arrays = jax.device_put((SAMPLES, VALUE), sharded)
    solution = subset_sum.solve(*arrays)
    assert solution.mask.sharding.spec == jax.P("trial")
    assert_same(solution, subset_sum.solve(SAMPLES, VALUE))
    assert "all-gather" not in jax.jit(subset_sum.solve).lower(*arrays).compile().as_text()


def test_shards_are_solved_where_they_are_without_a_compiled_kernel():
    mesh = jax.make_mesh((8,), ("trial",), axis_types=(jax.sharding.AxisType.Auto,))
    arrays = jax.device_put((SAMPLES, VALUE), jax.NamedSharding(mesh, jax.P("trial")))
    tiled = functools.partial(batches.in_tiles, max_exact=24, lanes=64)
    program = jax.jit(tiled).lower(*arrays).compile()
    assert_same(tuple(program(*arrays)), tuple(subset_sum.solve(SAMPLES, VALUE)))
    assert not re.search("all-|collective", program.as_text())


def test_second_call_compiles_nothing():
    subset_sum.solve(SAMPLES, VALUE)
    compiled = solver._solve._cache_size()
    subset_sum.solve(SAMPLES + 1, VALUE)
    assert solver._solve._cache_size() == compiled


def test_nothing_is_differentiated_through():
    gradient = jax.grad(lambda s: jnp.sum(subset_sum.solve(s, VALUE).total))(jnp.asarray(SAMPLES))
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize(
    ("samples", "value", "message"),
    [
        (np.ones((2, 3), int), np.ones(2), "samples must be of dtype float32 or float64, got"),
        (np.ones((2, 3)), np.ones(2, int), "value must be of dtype float32 or float64, got"),
        (np.ones((2, 3)), np.ones(3), r"value must be of shape \(2\), got shape \(3,\)"),
        (np.ones((2, 3)), np.float32(1), r"value must be of shape \(2\), got shape \(\)"),
        (np.float32(1), np.float32(1), "samples must be an array of at least 1 dimensions"),
        (np.full((2, 3), np.nan), np.ones(2), "samples must be finite, got 6 NaN or infinite"),
        (np.ones((2, 3)), np.array([1, np.inf]), "value must be finite, got 1 NaN or infinite"),
        (np.full((2, 3), 1e300), np.ones(2), "samples must be finite, got 6 NaN or infinite"),
        (np.ones((2, 3), np.float16), np.ones(2), "samples must be of dtype float32 or float64"),
        (np.ones((1, 4097)), np.ones(1), "samples must be at most 4096 numbers an instance"),
    ],
)
def test_bad_input_is_refused(samples, value, message):
    with refusals(message) as caught:
        subset_sum.solve(samples, value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("max_exact", [1, 31, 24.0, True])
def test_bad_max_exact_is_refused(max_exact):
    with refusals(r"max_exact must be an integer in \[2, 30\]"):
        subset_sum.solve(np.ones(3), np.float32(1), max_exact=max_exact)
