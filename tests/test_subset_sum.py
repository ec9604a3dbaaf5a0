"""Subset sums against brute force, and their contract with JAX."""

import jax
import numpy as np
import pytest

from slth_jax import subset_sum


def products(n, batch=200, seed=0):
    rng = np.random.default_rng(seed)
    samples = rng.uniform(-1, 1, (batch, n)) * rng.uniform(-1, 1, (batch, n))
    return samples.astype(np.float32), rng.uniform(-0.5, 0.5, batch).astype(np.float32)


def least_error(samples, value):
    n = samples.shape[-1]
    masks = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
    sums = samples.astype(np.float64) @ masks.T.astype(np.float64)
    return np.min(np.abs(value[:, None] - sums), axis=1)


def true_error(samples, value, mask):
    return np.abs(value - np.sum(samples.astype(np.float64) * np.asarray(mask), axis=1))


@pytest.mark.parametrize("n", [1, 2, 3, 7, 12])
def test_equals_brute_force(n):
    samples, value = products(n)
    solution = subset_sum.solve(samples, value)
    tolerance = 4e-7 * (1 + np.sum(np.abs(samples), axis=1))
    found = true_error(samples, value, solution.mask)
    assert np.all(found <= least_error(samples, value) + tolerance)
    assert np.all(np.abs(found - solution.error) <= tolerance)
    assert np.all(solution.optimal)


@pytest.mark.parametrize(("n", "padded"), [(3, 30), (16, 64), (40, 100)])
def test_zeros_at_the_end_change_nothing(n, padded):
    samples, value = products(n)
    alone = subset_sum.solve(samples, value)
    together = subset_sum.solve(np.pad(samples, ((0, 0), (0, padded - n))), value)
    assert not np.any(together.mask[:, n:])
    jax.tree.map(np.testing.assert_array_equal, alone, together._replace(mask=together.mask[:, :n]))
