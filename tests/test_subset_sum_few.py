"""Subset sums of at most k samples, against brute force; the rule that limits a mask's density."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import refusals

from slth_jax import construction, subset_sum

RNG = np.random.default_rng(3)


@pytest.mark.parametrize(("n", "most"), [(1, 1), (7, 2), (8, 3), (9, 9)])
def test_the_closest_of_all_small_subsets(n, most):
    samples = RNG.uniform(-1, 1, (50, n)).astype(np.float32)
    samples[:, n // 2] *= RNG.random(50) < 0.8  # some zeros
    value = RNG.normal(0, 0.7, 50).astype(np.float32)
    solution = subset_sum.solve_few(samples, value, most=most)
    masks = np.array([m for m in itertools.product((0, 1), repeat=n) if sum(m) <= most])
    sums = np.einsum("bn,mn->bm", samples.astype(np.float64), masks)
    least = np.abs(value[:, None] - sums).min(axis=1)
    slack = n * 2.0**-29 * np.abs(samples).sum(1) + 4e-7
    assert np.all(np.asarray(solution.error) <= least + slack)
    mask = np.asarray(solution.mask)
    assert mask.sum(1).max() <= most and not mask[samples == 0].any()
    total = np.sum(samples * mask, axis=1, dtype=np.float64)
    np.testing.assert_allclose(solution.total, total, atol=1e-6)
    np.testing.assert_allclose(solution.error, np.abs(value - total), atol=1e-6)


@pytest.mark.slow
def test_jit_vmap_and_the_rest_of_the_batch_change_no_bit():
    samples = jnp.asarray(RNG.uniform(-1, 1, (70, 10)), jnp.float32)
    value = jnp.asarray(RNG.normal(0, 0.7, 70), jnp.float32)

    def masks(samples, value):
        return subset_sum.solve_few(samples, value, most=3).mask

    eager = masks(samples, value)
    np.testing.assert_array_equal(jax.jit(masks)(samples, value), eager)
    np.testing.assert_array_equal(jax.vmap(masks)(samples, value), eager)
    np.testing.assert_array_equal(masks(samples[5:6], value[5:6]), eager[5:6])


def test_bad_input_is_one_line():
    samples, value = jnp.ones((2, 4)), jnp.ones(2)
    with refusals(r"^most must be an integer >= 1, got 0"):
        subset_sum.solve_few(samples, value, most=0)
    with refusals(r"^most must be a number with at most 65536 subsets of half of the 60 samples"):
        subset_sum.solve_few(jnp.ones((2, 60)), value, most=20)
    with refusals(r"^samples must be at least one number per instance"):
        subset_sum.solve_few(jnp.ones((2, 0)), value, most=1)


def test_the_rule_sets_the_density_of_a_mask():
    left, right, target = (
        jnp.asarray(RNG.uniform(-1, 1, shape), jnp.float32) for shape in ((6, 40), (40, 4), (6, 4))
    )
    errors, shares = [], []
    for most in (1, 2, 4):
        rule = construction.sparse(most)
        (left_mask, right_mask), report = construction.solve_product(
            left, right, target, construction=rule
        )
        product = (left * left_mask) @ (right * right_mask)
        errors.append(float(jnp.max(jnp.abs(product - target))))
        assert errors[-1] == pytest.approx(float(report.max_error), abs=1e-5)
        shares.append(float(jnp.mean(left_mask)))
        assert shares[-1] <= most / 10 + 1e-6
    assert errors[0] > errors[1] > errors[2] and shares[0] < shares[1] < shares[2]


def test_the_limit_holds_beside_shift_units():
    """A rule that combines both: shift units are kept besides the samples of each entry."""
    rule = dataclasses.replace(construction.shift(2, 4), most=1)
    left, right, target = (
        jnp.asarray(RNG.uniform(-1, 1, shape), jnp.float32) for shape in ((6, 40), (40, 4), (6, 4))
    )
    left_mask, _ = construction.prune_product(left, right, target, construction=rule)
    # One sample for each of four columns, and two shift units.
    assert int(jnp.max(jnp.sum(left_mask, axis=1))) <= 4 + 2


def test_a_layer_across_a_relu_is_sparse_too():
    network = [jnp.asarray(RNG.uniform(-1, 1, s), jnp.float32) for s in ((64, 3), (2, 64))]
    target = jnp.asarray(RNG.uniform(-0.5, 0.5, (2, 3)), jnp.float32)
    masks = construction.prune_relu_layer(*network, target, construction=construction.sparse(2))
    assert float(jnp.mean(jnp.asarray(masks[1]))) <= 4 * 3 / 64
