"""Padded projections keep their widths through every operation, and are no `AttentionParams`."""

import copy
import dataclasses
import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slth_jax import attention, construction, initializers
from slth_jax.types import AttentionParams, PaddedAttention

KEY = jax.random.key(5, impl="threefry2x32")
SHAPE = {"num_heads": 2, "d_in": 3, "d_out": 4}


def draw(n_k=5, n_v=6, **options):
    return initializers.theory_attention(KEY, n_k=n_k, n_v=n_v, **SHAPE, **options)


def padded():
    return draw(padded=9)


def test_it_is_six_arrays_to_jax_and_cannot_be_unpacked():
    params = padded()
    assert not isinstance(params, AttentionParams)
    for misuse in (lambda: AttentionParams(*params), lambda: params[0], lambda: tuple(params)):
        with pytest.raises(TypeError):
            misuse()
    assert {w.shape[-1] for w in (params.w_q, params.w_k, params.w_v)} == {9}
    paths = [jax.tree_util.keystr(p, simple=True) for p, _ in jax.tree.leaves_with_path(params)]
    assert paths == ["w_q", "w_k", "w_v", "w_o", "k_units", "v_units"]
    assert (int(params.key_width), int(params.value_width)) == (5, 6)
    assert (draw().key_width, draw().value_width) == (5, 6)
    assert "k_units=bool[" in repr(params) and len(repr(params)) < 200
    chex.assert_trees_all_equal_shapes(params.narrow(5, 6), draw())


CHANGES = {
    "as it is": lambda p: p,
    "replaced": lambda p: dataclasses.replace(p, w_q=2 * p.w_q),
    "scaled": lambda p: jax.tree.map(lambda w: w * 0.5, p),
    "other dtype": lambda p: jax.tree.map(lambda w: w.astype(jnp.float16), p),
    "copied": copy.deepcopy,
    "pickled": lambda p: pickle.loads(pickle.dumps(p)),
    "product": lambda p: jax.tree.map(lambda w, m: w * m, p, jax.tree.map(lambda w: w != 0, p)),
    "masked": lambda p: construction.apply_masks(p, jax.tree.map(lambda w: w > 0, p)),
    "jitted": jax.jit(lambda p: p),
    "stacked": lambda p: jax.tree.map(
        lambda w: w[1], jax.tree.map(lambda a, b: jnp.stack([a, b]), p, p)
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_widths_are_kept(name):
    changed = CHANGES[name](padded())
    assert isinstance(changed, PaddedAttention)
    assert (int(changed.key_width), int(changed.value_width)) == (5, 6)


def test_apply_and_merge_are_those_of_the_narrow_layer():
    x = jax.random.normal(KEY, (7, 3))
    np.testing.assert_allclose(attention.apply(padded(), x), attention.apply(draw(), x), atol=2e-5)
    chex.assert_trees_all_close(attention.merge(padded()), attention.merge(draw()), atol=1e-5)
    error = attention.error(padded(), draw(), jnp.stack([x, 2 * x]))
    assert error.shape == (2,) and float(jnp.max(error)) < 5e-5


def test_widths_are_traced_one_by_one_under_vmap():
    x = jax.random.normal(KEY, (7, 3))
    sizes = jnp.array([4, 9])
    layers = jax.vmap(lambda n: draw(n_k=n, n_v=n, padded=9))(sizes)
    outputs = jax.vmap(lambda params: attention.apply(params, x))(layers)
    for n, output in zip((4, 9), outputs, strict=True):
        np.testing.assert_allclose(output, attention.apply(draw(n, n), x), atol=5e-5)
