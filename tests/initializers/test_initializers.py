"""Source distributions: their moments, and that a unit's numbers do not depend on the rest."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cells import cells
from refusals import refusals

from slth_jax import initializers

SHAPE = {"num_heads": 2, "d_in": 3, "d_out": 4}
KEY = jax.random.key(7, impl="threefry2x32")


def bound(name, n_k, n_v):
    """Largest absolute entry that each distribution allows, per projection."""
    root = n_k**0.25
    qk, v, o = (np.sqrt(6 / (i + j)) for i, j in ((3, n_k), (3, n_v), (n_v, 4)))
    return {
        "theory": (root, root, 1, 1),
        "signed_constant": (root, root, 1, 1),
        "xavier": (qk, qk, v, o),
        "xavier_scaled": (qk * root, qk * root, v, o),
    }[name]


# The distributions differ, the machinery is shared: one cell shows its properties.
FEW = pytest.mark.parametrize("name", cells(initializers.ATTENTION, fast=("theory",)))


@pytest.mark.parametrize("name", initializers.ATTENTION)
def test_distribution(name):
    n_k, n_v = 900, 400
    params = initializers.ATTENTION[name](KEY, n_k=n_k, n_v=n_v, **SHAPE)
    for weight, limit in zip(params, bound(name, n_k, n_v), strict=True):
        w = np.asarray(weight, np.float64) / limit
        assert np.abs(w).max() <= 1 + 1e-6
        # Moments within five standard errors: variance 1/3 for U[-1, 1], 1 for signs.
        variance = 1.0 if name == "signed_constant" else 1 / 3
        assert abs(w.mean()) < 5 * np.sqrt(variance / w.size)
        spread = 0 if name == "signed_constant" else np.sqrt(4 / 45 / w.size)
        assert abs((w**2).mean() - variance) <= 5 * spread + 1e-6
    assert [w.shape for w in params] == [(2, 3, 900), (2, 3, 900), (2, 3, 400), (2, 400, 4)]
    assert not np.array_equal(params.w_q, params.w_k)


@FEW
def test_padding_tracing_and_batching_do_not_change_a_bit(name):
    draw = initializers.ATTENTION[name]
    alone = draw(KEY, n_k=5, n_v=6, **SHAPE)
    padded = jax.jit(lambda k, n: draw(k, n_k=n, n_v=n + 1, padded=16, **SHAPE))(KEY, 5)
    keys = jnp.stack([jax.random.key(1, impl="threefry2x32"), KEY])
    batched = jax.vmap(lambda k: draw(k, n_k=5, n_v=6, **SHAPE))(keys)
    for field in alone._fields:
        want = np.asarray(getattr(alone, field))
        drawn = np.asarray(getattr(padded, field))
        inside = tuple(slice(0, size) for size in want.shape)
        np.testing.assert_array_equal(drawn[inside], want)
        assert np.count_nonzero(drawn) == np.count_nonzero(want)
        np.testing.assert_array_equal(np.asarray(getattr(batched, field))[1], want)


@pytest.mark.parametrize("name", initializers.ATTENTION)
def test_compiled_as_eager_and_the_second_call_compiles_nothing(name):
    draw = functools.partial(initializers.ATTENTION[name], n_k=5, n_v=6, **SHAPE)
    alone = draw(KEY)
    before = initializers._projections._cache_size()
    other = draw(jax.random.key(8, impl="threefry2x32"))
    assert initializers._projections._cache_size() == before
    chex.clear_trace_counter()
    compiled = jax.jit(chex.assert_max_traces(lambda key: draw(key), 1))
    chex.assert_trees_all_equal(compiled(KEY), alone)
    chex.assert_trees_all_equal(compiled(jax.random.key(8, impl="threefry2x32")), other)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@FEW
def test_weights_are_of_the_dtype_asked_for(name, dtype):
    with jax.enable_x64(dtype == "float64"):
        params = initializers.ATTENTION[name](KEY, n_k=5, n_v=6, dtype=dtype, **SHAPE)
        assert {w.dtype for w in params} == {jnp.dtype(dtype)}
        assert all(bool(jnp.all(jnp.isfinite(w)) & jnp.any(w != 0)) for w in params)


def test_blocks_are_attention_of_their_own_keys():
    options = {"num_heads": 2, "n_k": 5, "n_v": 6}
    blocks = initializers.theory_blocks(KEY, num_blocks=2, d=3, **options)
    for index, block in enumerate(blocks):
        key = jax.random.fold_in(KEY, index)
        alone = initializers.theory_attention(key, d_in=3, d_out=3, **options)
        chex.assert_trees_all_equal(block, alone)


def test_bad_widths_are_named():
    with refusals(r"^n_k must be an integer >= 1, got 0"):
        initializers.theory_attention(KEY, n_k=0, n_v=1, **SHAPE)
    with refusals(r"^n_v must be an integer in \[1, 8\], got 9"):
        initializers.theory_attention(KEY, n_k=1, n_v=9, padded=8, **SHAPE)
    with refusals(r"^d_in must be an integer >= 1"):
        initializers.theory_attention(KEY, n_k=1, n_v=1, num_heads=1, d_in=0, d_out=1)


def test_a_transformer_of_the_theory_has_two_relu_layers_for_each_of_the_targets():
    shape = {"num_blocks": 2, "num_heads": 2, "d": 3, "hidden": [5], "n_k": 4, "n_v": 4}
    blocks = initializers.theory_transformer(KEY, units=[20, 30], **shape)
    attention = initializers.theory_blocks(KEY, num_blocks=2, num_heads=2, d=3, n_k=4, n_v=4)
    chex.assert_trees_all_equal(tuple(block.attention for block in blocks), attention)
    for block in blocks:
        assert [layer.w.shape for layer in block.layers] == [(20, 3), (5, 20), (30, 5), (3, 30)]
    entries = np.concatenate([np.ravel(layer.w) for b in blocks for layer in b.layers])
    assert 0.98 < np.abs(entries).max() <= 1
    assert abs((entries**2).mean() - 1 / 3) < 5 * np.sqrt(4 / 45 / entries.size)
    wide = initializers.theory_transformer(KEY, units=[40, 30], **shape)
    np.testing.assert_array_equal(wide[1].layers[0].w[:20], blocks[1].layers[0].w)
    np.testing.assert_array_equal(wide[1].layers[1].w[:, :20], blocks[1].layers[1].w)
    with refusals("^units must be 2 numbers, as many as layers, got 1$"):
        initializers.theory_transformer(KEY, units=[20], **shape)
