"""Attention against PyTorch, against its merged form, and over all kinds of attention masks."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import refusals

from slth_jax import attention, initializers
from slth_jax.types import AttentionParams

T = 7


def make(seed=0, *, heads=2, d_in=3, d_out=4, n_k=5, n_v=6, dtype=jnp.float32):
    key = jax.random.key(seed, impl="threefry2x32")
    params = initializers.theory_attention(
        key, num_heads=heads, d_in=d_in, d_out=d_out, n_k=n_k, n_v=n_v, dtype=dtype
    )
    x = jax.random.normal(jax.random.fold_in(key, 99), (T, d_in), dtype)
    return params, x


def reference(params, x, mask=None):
    """Attention row by row in NumPy float64."""
    w_q, w_k, w_v, w_o = (np.asarray(w, np.float64) for w in params)
    x = np.asarray(x, np.float64)
    out = np.zeros((x.shape[0], w_o.shape[-1]))
    for h in range(w_q.shape[0]):
        for i in range(x.shape[0]):
            logits = (x[i] @ w_q[h]) @ (x @ w_k[h]).T / np.sqrt(w_q.shape[-1])
            seen = np.ones(len(x), bool) if mask is None else np.asarray(mask)[i]
            weights = np.where(seen, np.exp(logits - logits[seen].max()), 0)
            out[i] += weights / weights.sum() @ (x @ w_v[h]) @ w_o[h]
    return out


def masks():
    rng = np.random.default_rng(0)
    arbitrary = rng.random((T, T)) < 0.5
    arbitrary[np.arange(T), rng.integers(0, T, T)] = True
    padding = np.broadcast_to(np.arange(T) < 4, (T, T)).copy()
    return {
        "none": None,
        "causal": np.asarray(attention.causal_mask(T)),
        "padding": padding,
        "arbitrary": arbitrary,
    }


@pytest.mark.parametrize("name", masks())
def test_matches_row_by_row_reference_and_merged_form(name):
    mask = masks()[name]
    params, x = make()
    want = reference(params, x, mask)
    # A few hundred float32 operations on numbers of order ten.
    np.testing.assert_allclose(attention.apply(params, x, mask), want, atol=2e-5)
    merged = attention.merge(params)
    np.testing.assert_allclose(attention.apply_merged(merged, x, mask), want, atol=2e-5)


@pytest.mark.parametrize("name", masks())
@pytest.mark.parametrize("block_size", [1, 3, None])
def test_queries_and_blocks_compute_the_same_rows(name, block_size):
    mask = masks()[name]
    params, x = make(1)
    rows = jnp.array([5, 0, 2, 2])
    whole = attention.apply(params, x, mask)
    chosen = attention.apply(params, x, mask, queries=rows, block_size=block_size)
    np.testing.assert_allclose(chosen, whole[rows], atol=1e-5)
    blocked = attention.apply(params, x, mask, block_size=block_size)
    np.testing.assert_allclose(blocked, whole, atol=1e-5)
    merged = attention.apply_merged(attention.merge(params), x, mask, queries=rows)
    np.testing.assert_allclose(merged, whole[rows], atol=2e-5)


def test_matches_pytorch_multihead_attention():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    heads, width = 4, 8
    d = heads * width
    params, _ = make(2, heads=heads, d_in=d, d_out=d, n_k=width, n_v=width)
    x = np.array(jax.random.normal(jax.random.key(3), (T, d)))
    module = torch.nn.MultiheadAttention(d, heads, bias=False, batch_first=True)
    w_q, w_k, w_v, w_o = (np.asarray(w) for w in params)
    with torch.no_grad():
        rows = [w.transpose(0, 2, 1).reshape(d, d) for w in (w_q, w_k, w_v)]
        module.in_proj_weight.copy_(torch.from_numpy(np.concatenate(rows)))
        module.out_proj.weight.copy_(torch.from_numpy(w_o.reshape(d, d).T.copy()))
        for mask in masks().values():
            blocked = None if mask is None else torch.from_numpy(~mask)
            y = torch.from_numpy(x)[None]
            want = module(y, y, y, attn_mask=blocked, need_weights=False)[0][0].numpy()
            # float32 sums of 32 products at the scale of the outputs
            np.testing.assert_allclose(
                attention.apply(params, x, mask), want, atol=3e-6 * np.abs(want).max() * d
            )


def test_contract_jit_vmap_and_one_compilation():
    params, x = make(4)
    mask = jnp.asarray(masks()["arbitrary"])
    chex.clear_trace_counter()
    jitted = jax.jit(chex.assert_max_traces(lambda p, x, m: attention.apply(p, x, m), n=1))
    eager = attention.apply(params, x, mask)
    np.testing.assert_allclose(jitted(params, x, mask), eager, atol=1e-5)
    jitted(params, x + 1, mask)
    batch = jnp.stack([x, 2 * x])
    lifted = jax.vmap(attention.apply, (None, 0, None))(params, batch, mask)
    loop = jnp.stack([attention.apply(params, row, mask) for row in batch])
    np.testing.assert_allclose(lifted, loop, atol=1e-5)
    assert eager.shape == (T, 4) and eager.dtype == jnp.float32


def test_a_row_that_attends_to_nothing_has_finite_gradients():
    params, x = make(6)
    mask = jnp.ones((T, T), bool).at[3].set(False)
    gradient = jax.jit(jax.grad(lambda x, mask: jnp.sum(attention.apply(params, x, mask) ** 2)))
    whole = gradient(x, jnp.ones((T, T), bool))
    assert np.all(np.isfinite(gradient(x, mask))) and not np.allclose(gradient(x, mask), whole)


def test_float64_from_numpy_is_rounded_without_a_word_and_half_precision_works():
    params, x = make(8)
    wide = AttentionParams(*(np.asarray(w, np.float64) for w in params))
    output = attention.apply(wide, np.asarray(x, np.float64))
    assert output.dtype == jnp.float32
    np.testing.assert_array_equal(output, attention.apply(params, x))
    np.testing.assert_array_equal(attention.merge(wide).w_qk, attention.merge(params).w_qk)
    half = jax.tree.map(lambda w: w.astype(jnp.bfloat16), params)
    assert attention.apply(half, x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_a_row_that_attends_to_nothing_is_refused_or_zero_never_nan():
    params, x = make(6)
    mask = np.ones((T, T), bool)
    mask[3] = False
    with refusals(r"^attn_mask must be True at least once in every row"):
        attention.apply(params, x, mask)
    out = jax.jit(attention.apply)(params, x, mask)
    assert np.all(np.isfinite(out)) and not np.any(np.asarray(out)[3])


def test_long_input_is_computed_in_blocks():
    """The compiled program's temporary memory grows with t, not with t^2."""
    params, _ = make(7, heads=1, d_in=2, d_out=1, n_k=8, n_v=8)
    x = jax.ShapeDtypeStruct((8192, 2), jnp.float32)
    compiled = jax.jit(attention.apply).lower(params, x).compile()
    logits = 4 * 8192**2
    assert compiled.memory_analysis().temp_size_in_bytes < logits / 2


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"x": np.zeros((T, 2), np.float32)},
            r"^x must be of shape \(any, 3\), got shape \(7, 2\)",
        ),
        ({"x": np.full((T, 3), np.nan, np.float32)}, r"^x must be finite, got 21 NaN or infinite"),
        ({"x": np.zeros((T, 3), int)}, r"^x must be a floating-point array, got dtype int64"),
        ({"attn_mask": np.ones((T, T))}, r"^attn_mask must be a boolean array"),
        ({"attn_mask": np.ones((T, 2), bool)}, r"^attn_mask must be of shape \(7, 7\)"),
        ({"queries": np.array([7])}, r"^queries must be indices in \[0, 6\], got 7 to 7"),
        ({"block_size": 0}, r"^block_size must be an integer >= 1, got 0"),
    ],
)
def test_bad_input_gives_one_line(change, message):
    params, x = make()
    with refusals(message) as caught:
        attention.apply(params, **{"x": x, **change})
    assert "\n" not in str(caught.value)


def test_mismatched_projections_are_named():
    params, x = make()
    with refusals(r"^params.w_k must be of shape \(2, any, 5\)"):
        attention.apply(params._replace(w_k=params.w_k[:1]), x)


def test_params_are_told_by_shape_and_not_number_by_number():
    params, _ = make()
    assert repr(params) == (
        "AttentionParams(w_q=float32[2,3,5], w_k=float32[2,3,5], w_v=float32[2,3,6], "
        "w_o=float32[2,6,4])"
    )
    assert repr(attention.merge(params)) == "MergedParams(w_qk=float32[2,3,3], w_vo=float32[2,3,4])"
    assert "w_q=None" in repr(jax.tree.map(lambda _: None, params))
