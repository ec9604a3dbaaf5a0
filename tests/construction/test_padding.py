"""Sources padded with zero units give the masks and errors of the sources alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cells import cells
from refusals import refusals

from slth_jax import attention, construction, guarantee, initializers
from slth_jax.types import PaddedAttention

pytestmark = pytest.mark.usefixtures("compiled_in_full")
KEY = jax.random.key(11, impl="threefry2x32")
SHAPE = {"num_heads": 1, "d_in": 2, "d_out": 1}
RULES = {**construction.RULES, "two shifts": construction.shift(2, 2, 0.5)}


def uniform(index, *shape):
    return jax.random.uniform(jax.random.fold_in(KEY, index), shape, minval=-1.0)


def target():
    drawn = initializers.theory_attention(jax.random.fold_in(KEY, 1), n_k=8, n_v=8, **SHAPE)
    return jax.tree.map(lambda w: w * 0.4, drawn)


@functools.cache
def pruned(name, padded):
    """Return a compiled function of the width, traced where it is padded."""

    def function(n):
        source = initializers.theory_attention(KEY, n_k=n, n_v=n, padded=padded, **SHAPE)
        masks = construction.prune_attention(source, target(), construction=RULES[name])
        return source, masks

    return jax.jit(function) if padded else function


@pytest.mark.parametrize("name", cells(RULES, fast=("proof",)))
def test_padding_and_tracing_the_width_change_no_mask(name):
    for n in (7, 12):
        _, masks = pruned(name, None)(n)
        _, wide = pruned(name, 12)(n)
        assert isinstance(wide, PaddedAttention) and int(wide.key_width) == n
        for name_of_mask, mask in masks._asdict().items():
            padded = getattr(wide, name_of_mask)
            inside = tuple(slice(0, size) for size in mask.shape)
            np.testing.assert_array_equal(padded[inside], mask)
            assert int(padded.sum()) == int(mask.sum()) and padded.dtype == bool


@pytest.mark.slow
def test_a_padded_source_without_any_option_has_the_error_of_the_source_alone():
    x = uniform(2, 6, 2)
    errors, bounds = {}, {}
    for padded in (None, 24):
        make = jax.vmap(
            lambda key, padded=padded: initializers.theory_attention(
                key, n_k=20, n_v=20, padded=padded, **SHAPE
            )
        )
        sources = make(jax.random.split(KEY, 8))

        def error(source):
            masks = construction.prune_attention(source, target())
            ticket = jax.tree.map(lambda w, m: w * m, source, masks)
            return attention.error(ticket, target(), x), masks

        ticket_errors, masks = jax.jit(jax.vmap(error))(sources)
        errors[padded] = ticket_errors
        first = jax.tree.map(lambda w: w[0], (sources, masks))
        bounds[padded] = guarantee.guarantee(*first, target(), 2.0, dtype=jnp.float64).error
    np.testing.assert_allclose(errors[24], errors[None], atol=1e-6)
    assert bounds[24] == pytest.approx(bounds[None], rel=1e-6)


@pytest.mark.parametrize("name", cells(RULES, fast=("proof",)))
def test_zero_units_behind_raw_factors_change_no_mask(name):
    left, right, goal = uniform(3, 3, 13), uniform(4, 13, 3), uniform(5, 3, 3)
    prune = functools.partial(construction.prune_product, construction=RULES[name])
    of_left, of_right = prune(left, right, goal)
    wide = jnp.pad(left, ((0, 0), (0, 6))), jnp.pad(right, ((0, 6), (0, 0))), goal
    for padded_masks in (prune(*wide), jax.jit(prune)(*wide)):
        np.testing.assert_array_equal(padded_masks[0], jnp.pad(of_left, ((0, 0), (0, 6))))
        np.testing.assert_array_equal(padded_masks[1], jnp.pad(of_right, ((0, 6), (0, 0))))
    # One call for matrices of different widths.
    batch = [
        jnp.stack([jnp.pad(x, pad), y])
        for x, y, pad in (
            (left, uniform(6, 3, 19), ((0, 0), (0, 6))),
            (right, uniform(7, 19, 3), ((0, 6), (0, 0))),
        )
    ]
    both = prune(*batch, jnp.stack([goal, goal]))
    np.testing.assert_array_equal(both[0][0, :, :13], of_left)
    np.testing.assert_array_equal(both[1][0, :13], of_right)


@pytest.mark.parametrize("name", ["proof", "shift"])
def test_zero_units_behind_a_relu_layer_change_no_mask(name):
    w1, w2, goal = uniform(3, 16, 3), uniform(4, 2, 16), 0.5 * uniform(5, 2, 3)
    prune = functools.partial(construction.prune_relu_layer, construction=name)
    mask1, mask2 = prune(w1, w2, goal)
    wide = jnp.pad(w1, ((0, 5), (0, 0))), jnp.pad(w2, ((0, 0), (0, 5))), goal
    for padded_masks in (prune(*wide), jax.jit(prune)(*wide)):
        np.testing.assert_array_equal(padded_masks[0], jnp.pad(mask1, ((0, 5), (0, 0))))
        np.testing.assert_array_equal(padded_masks[1], jnp.pad(mask2, ((0, 0), (0, 5))))


def test_too_narrow_behind_the_padding_is_refused():
    source = initializers.theory_attention(KEY, n_k=1, n_v=4, padded=20, **SHAPE)
    with refusals(r"^source n_k must be at least 2, one hidden unit"):
        construction.prune_attention(source, target())
    wide = jnp.pad(uniform(3, 3, 2), ((0, 0), (0, 6))), jnp.pad(uniform(4, 2, 3), ((0, 6), (0, 0)))
    with refusals(r"left and right must be at least 3, one hidden .* got 2"):
        construction.prune_product(*wide, uniform(5, 3, 3))
