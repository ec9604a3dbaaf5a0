"""Bands: masks of one unit per column and row, and the shortest paths that choose them."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import refusals

from slth_jax import construction
from slth_jax.construction import choices, trellis
from slth_jax.construction.trellis import Band
from slth_jax.subset_sum import kernel

KEY = jax.random.key(7, impl="threefry2x32")


def problem(p, r, bits, window, *, spare=0, index=0, scale=1.5):
    """Draw uniform factors, the free one at the scale that suits targets of variance 1."""
    keys = jax.random.split(jax.random.fold_in(KEY, index), 3)
    n = 2**bits * r + spare
    left = scale * 3 / np.sqrt(window) * jax.random.uniform(keys[0], (p, n), minval=-1.0)
    right = jax.random.uniform(keys[1], (n, r), minval=-1.0)
    return left, right, jax.random.normal(keys[2], (p, r))


def all_errors(left, right, target, bits, window):
    """Return the least squared error of each row over every choice of digits, by brute force."""
    (p, r), m = target.shape, 2**bits
    best = np.full(p, np.inf)
    for digits in itertools.product(range(m), repeat=r):
        entry = np.zeros((p, r))
        for j, digit in enumerate(digits):
            for step in range(window):
                column = (j + step) % r
                entry[:, column] += left[:, j * m + digit] * right[j * m + digit, column]
        best = np.minimum(best, np.sum((entry - target) ** 2, axis=1))
    return best


@pytest.mark.parametrize(
    "bits, window, r", [(1, 2, 7), pytest.param(1, 3, 9, marks=pytest.mark.slow), (2, 2, 5)]
)
def test_the_walk_is_the_best_of_all_choices(bits, window, r):
    """The state at the seam is settled, not searched: a few rows of many may miss the best."""
    left, right, target = problem(40, r, bits, window)
    masks = trellis.solve(left, right, target, left.shape[1], Band(bits, window))
    errors = np.sum(np.asarray(masks[2], np.float64) ** 2, axis=1)
    best = all_errors(*(np.asarray(x, np.float64) for x in (left, right, target)), bits, window)
    # Terms are rounded to 12 binary digits while the walk is chosen.
    assert np.all(errors >= best * (1 - 1e-5))
    assert np.mean(errors <= best * 1.002 + 1e-6) >= 0.9
    assert np.sum(errors) <= 1.03 * np.sum(best)


@pytest.mark.skipif(not kernel.ready(), reason="no C++ compiler")
@pytest.mark.parametrize("bits, window", [(1, 4), (3, 3), (4, 2), (6, 2)])
def test_the_compiled_kernel_has_the_bits_of_the_program(bits, window):
    p, r, m = 3, 9, 2**bits
    keys = jax.random.split(jax.random.fold_in(KEY, bits), 3)
    left = 4 * jax.random.normal(keys[0], (2, p, r, m))
    right = jax.random.uniform(keys[1], (r, m, window), minval=-1.0)
    target = jax.random.normal(keys[2], (2, p, r))
    usable = jnp.array([m, m // 2])

    @jax.jit
    def by_program(left, target, usable):
        return jnp.stack(
            [trellis._by_xla(x, right, y, n) for x, y, n in zip(left, target, usable, strict=True)]
        )

    solve = jax.vmap(trellis.shortest, in_axes=(0, None, 0, 0))
    digits = solve(left, right, target, usable)
    np.testing.assert_array_equal(digits, by_program(left, target, usable))
    assert digits[1].max() < m // 2


@pytest.mark.slow
def test_a_window_of_one_column_keeps_the_nearest_product():
    left, right, target = problem(5, 7, 3, 1)
    masks = trellis.solve(left, right, target, left.shape[1], Band(3, 1))
    to_own = jnp.stack([right[8 * j : 8 * j + 8, j] for j in range(7)])
    terms = left.reshape(5, 7, 8) * to_own[None]
    nearest = jnp.min(jnp.abs(terms - target[..., None]), axis=-1)
    np.testing.assert_allclose(masks[2], nearest, atol=1e-6)


def test_masks_are_a_band_and_one_unit_per_column_and_row():
    p, r, bits, window = 6, 10, 2, 3
    left, right, target = problem(p, r, bits, window, spare=5)
    rule = construction.band(bits, bits * (window - 1))
    (left_mask, right_mask), report = construction.solve_product(
        left, right, target, construction=rule
    )
    m = 2**bits
    kept = np.asarray(left_mask)[:, : m * r].reshape(p, r, m)
    assert np.all(kept.sum(axis=-1) == 1) and not left_mask[:, m * r :].any()
    for unit in range(m * r):
        columns = {(unit // m + step) % r for step in range(window)}
        assert set(np.flatnonzero(right_mask[unit])) == columns
    product = np.asarray(left * left_mask, np.float64) @ np.asarray(right * right_mask, np.float64)
    assert abs(product - target).max() == pytest.approx(float(report.max_error), abs=1e-5)


@pytest.mark.slow
def test_padding_and_compiling_change_no_mask():
    left, right, target = problem(70, 12, 2, 3)  # more rows than are solved at once
    prune = construction.prune_product
    rule = construction.band(2, 4)
    plain = prune(left, right, target, construction=rule)
    padded = prune(
        jnp.pad(left, ((0, 0), (0, 9))),
        jnp.pad(right, ((0, 9), (0, 0))),
        target,
        construction=rule,
    )
    n = left.shape[1]
    chex.assert_trees_all_equal((padded[0][:, :n], padded[1][:n]), plain)
    halves = jax.jit(jax.vmap(lambda rows, goal: prune(rows, right, goal, construction=rule)[0]))
    chex.assert_trees_all_equal(
        halves(left.reshape(2, 35, n), target.reshape(2, 35, 12)).reshape(70, n), plain[0]
    )


@pytest.mark.parametrize(
    "bits, states, most", [(3, 6, 0.075), pytest.param(4, 8, 0.0115, marks=pytest.mark.slow)]
)
def test_gaussian_entries_at_few_bits(bits, states, most):
    """More states are measured by experiments/benchmarks/bits.py; these are the small ones."""
    window = 1 + states // bits
    left, right, target = problem(48, 64, bits, window, index=1)
    rule = construction.band(bits, states)
    masks = construction.prune_product(left, right, target, construction=rule)
    product = (left * masks[0]) @ (right * masks[1])
    assert float(jnp.mean((product - target) ** 2)) < most


def test_a_narrow_source_has_fewer_bits_and_bad_numbers_are_named():
    left, right, target = problem(4, 6, 1, 2, spare=3)
    masks = construction.prune_product(left, right, target, construction=construction.band(4, 4))
    assert np.all(np.asarray(masks[0]).sum(axis=1) == 6)
    with refusals(r"^bits must be an integer in \[1, 12\], got 0"):
        construction.band(0)
    with refusals(r"^states must be an integer in \[0, 16\], got 20"):
        construction.band(4, 20)


@pytest.mark.parametrize("source", ["uniform", "sign_uniform", "sign_normal", "signs"])
def test_an_encoded_matrix_is_masked_random_factors(source):
    target = 0.02 * jax.random.normal(KEY, (20, 24))
    encoded = construction.encode_matrix(KEY, target, bits=3, states=3, source=source)
    product = (encoded.left * encoded.left_mask) @ (encoded.right * encoded.right_mask)
    error = float(jnp.mean((product - target) ** 2) / jnp.mean(target**2))
    assert encoded.error == pytest.approx(error, rel=1e-3) and error < 0.4
    assert int(encoded.left_mask.sum()) == target.size
    draw = construction.encode.SOURCES[source][0]
    row = draw(jax.random.fold_in(jax.random.fold_in(KEY, 0), 7), (8 * 24,), jnp.float32)
    np.testing.assert_array_equal(encoded.left[7], np.float32(encoded.scale) * row)


def test_a_target_of_zeros_cannot_be_encoded():
    with refusals(r"^target must be a matrix with an entry other than 0, got shape \(2, 3\)"):
        construction.encode_matrix(KEY, jnp.zeros((2, 3)))


@pytest.mark.parametrize("bits", [1, 3, 5, 8, 11])
def test_choices_are_packed_at_b_bits(bits):
    digits = np.random.default_rng(bits).integers(0, 2**bits, (2, 3, 7), dtype=np.int32)
    packed = np.asarray(choices.pack(jnp.asarray(digits), bits))
    assert packed.nbytes == choices.num_bytes((2, 3, 7 * 2**bits), bits) == 6 * -(-7 * bits // 8)
    np.testing.assert_array_equal(choices.unpack(packed, 7, bits), digits)
    first = int.from_bytes(packed[0, 0].tobytes(), "big") >> (8 * packed.shape[-1] - bits)
    assert first == digits[0, 0, 0]
    mask = np.asarray(choices.mask(jnp.asarray(digits), bits)).reshape(2, 3, 7, 2**bits)
    np.testing.assert_array_equal(mask.argmax(-1), digits)
    assert np.all(mask.sum(-1) == 1)
