"""Multi-head attention as pure functions on explicit parameters.

It knows nothing of masks over weights: a ticket is applied by passing `weights * mask`.

Letters, here and in every einsum: h heads, m input width, k key width, v value width,
o output width, q query tokens, t key/value tokens.
"""

import jax
import jax.numpy as jnp
import numpy as np

from slth_jax import checks
from slth_jax.types import Array, ArrayLike, AttentionParams, MergedParams

# Logits of one block of queries: 2^22 entries are 16 MiB in float32, 32 MiB in float64.
_BLOCK_ENTRIES = 1 << 22


def apply(
    params: AttentionParams,
    x: ArrayLike,
    attn_mask: ArrayLike | None = None,
    *,
    queries: ArrayLike | None = None,
    block_size: int | None = None,
    precision: str = "highest",
) -> Array:
    """Compute multi-head attention of one sequence (paper, section 2).

    ``sum_h softmax_masked(x_i w_q (x w_k)^T / sqrt(k)) x w_v w_o`` for every row i.

    Args:
      params: `w_q, w_k [h, m, k]`, `w_v [h, m, v]`, `w_o [h, v, o]`; padded ones
        (`types.PaddedAttention`) know the k of ``1 / sqrt(k)``.
      x: tokens `[t, m]`. Lift over batches with `jax.vmap`.
      attn_mask: booleans `[t, t]`, True where row i may attend to column j; None for all.
        A row that may attend to nothing is refused; under a JAX transformation, where values
        are not known yet, such a row gives zeros.
      queries: indices `[q]` of the rows to compute; None for all.
      block_size: rows computed at once; None for as many as keep the logits of a block within
        2^22 entries, so that memory grows with t and not with t^2.
      precision: of the matrix products, as in `jax.default_matmul_precision`. Accelerators
        shorten float32 by default, which hides errors near 1e-6.

    Returns:
      `[t, o]`, or `[q, o]` with `queries`.

    Raises:
      ValueError: shapes, dtypes or values that do not fit, named in one line.

    Examples:
      One head that hands on the mean of the tokens, as all its logits are zero:

      >>> params = AttentionParams(*jnp.zeros((2, 1, 2, 1)), jnp.eye(2)[None], jnp.eye(2)[None])
      >>> apply(params, [[1.0, 0.0], [3.0, 4.0]]).tolist()
      [[2.0, 2.0], [2.0, 2.0]]
      >>> apply(params, [[1.0, 0.0], [3.0, 4.0]], causal_mask(2)).tolist()
      [[1.0, 0.0], [2.0, 2.0]]
    """
    params = _checked(params)
    h, m, _ = params.w_q.shape
    x = checks.array("x", x, shape=(None, m))
    root = _key_root(params)
    rows, allowed = _rows(x, attn_mask, queries)
    block = _block_size(block_size, h, x.shape[0])

    with jax.default_matmul_precision(precision):
        keys = jnp.einsum("tm,hmk->htk", x, params.w_k)
        values = jnp.einsum("tm,hmv->htv", x, params.w_v)

        def attend(x_rows: Array, may_attend: Array | None) -> Array:
            q = jnp.einsum("qm,hmk->hqk", x_rows, params.w_q)
            logits = jnp.einsum("hqk,htk->hqt", q, keys) / root
            heads = jnp.einsum("hqt,htv->hqv", _softmax(logits, may_attend), values)
            return jnp.einsum("hqv,hvo->qo", heads, params.w_o)

        return _in_blocks(attend, rows, allowed, block)


def pattern(
    params: AttentionParams,
    x: ArrayLike,
    attn_mask: ArrayLike | None = None,
    *,
    precision: str = "highest",
) -> Array:
    """Return where each head looks: ``softmax_masked(x_i w_q (x w_k)^T / sqrt(k))`` for every i.

    Args:
      params, x, attn_mask, precision: as in `apply`.

    Returns:
      `[h, t, t]`; rows sum to one. For looking at, of sequences short enough to hold t^2 numbers.

    Raises:
      ValueError: as in `apply`.
    """
    params = _checked(params)
    x = checks.array("x", x, shape=(None, params.w_q.shape[1]))
    rows, allowed = _rows(x, attn_mask, None)
    with jax.default_matmul_precision(precision):
        q = jnp.einsum("qm,hmk->hqk", rows, params.w_q)
        keys = jnp.einsum("tm,hmk->htk", x, params.w_k)
        return _softmax(jnp.einsum("hqk,htk->hqt", q, keys) / _key_root(params), allowed)


def merge(params: AttentionParams) -> MergedParams:
    """Merge the four projections into the two matrices that attention depends on.

    ``w_qk = w_q w_k^T / sqrt(k)`` `[h, m, m]`, ``w_vo = w_v w_o`` `[h, m, o]` (paper, section 2).
    """
    params = _checked(params)
    root = _key_root(params)
    with jax.default_matmul_precision("highest"):
        w_qk = jnp.einsum("hmk,hnk->hmn", params.w_q, params.w_k) / root
        w_vo = jnp.einsum("hmv,hvo->hmo", params.w_v, params.w_o)
    return MergedParams(w_qk, w_vo)


def apply_merged(
    merged: MergedParams,
    x: ArrayLike,
    attn_mask: ArrayLike | None = None,
    *,
    queries: ArrayLike | None = None,
    block_size: int | None = None,
    precision: str = "highest",
) -> Array:
    """Compute what `apply` computes, from the merged matrices.

    ``sum_h softmax_masked(x_i w_qk x^T) x w_vo``. Arguments, shapes and errors as in `apply`.
    """
    w_qk, w_vo = merged
    h, m, _ = checks.array("merged.w_qk", w_qk, ndim=3).shape
    checks.array("merged.w_qk", w_qk, shape=(h, m, m))
    checks.array("merged.w_vo", w_vo, shape=(h, m, None))
    x = checks.array("x", x, shape=(None, m))
    rows, allowed = _rows(x, attn_mask, queries)
    block = _block_size(block_size, h, x.shape[0])

    with jax.default_matmul_precision(precision):
        values = jnp.einsum("tm,hmo->hto", x, w_vo)

        def attend(x_rows: Array, may_attend: Array | None) -> Array:
            logits = jnp.einsum("qm,hmn,tn->hqt", x_rows, w_qk, x)
            return jnp.einsum("hqt,hto->qo", _softmax(logits, may_attend), values)

        return _in_blocks(attend, rows, allowed, block)


def causal_mask(length: int) -> Array:
    """Return the causal attention mask `[length, length]`: row i attends to columns j <= i."""
    return jnp.tril(jnp.ones((length, length), bool))


def _softmax(logits: Array, may_attend: Array | None) -> Array:
    """Softmax over the last axis of `[h, q, t]` within `may_attend [q, t]`; empty rows give 0."""
    if may_attend is None:
        return jax.nn.softmax(logits, axis=-1)
    # A row without anything would be 0 / 0; let it attend to all, and take nothing from it.
    some = jnp.any(may_attend, axis=-1, keepdims=True)
    weights = jax.nn.softmax(logits, axis=-1, where=(may_attend | ~some)[None])
    return jnp.where(some[None], weights, 0)


def _in_blocks(attend, rows: Array, allowed: Array | None, block: int) -> Array:
    """Apply `attend` to `rows`, `block` of them at a time."""
    if rows.shape[0] <= block:
        return attend(rows, allowed)
    if allowed is None:
        return jax.lax.map(lambda row: attend(row[None], None)[0], rows, batch_size=block)
    return jax.lax.map(
        lambda pair: attend(pair[0][None], pair[1][None])[0], (rows, allowed), batch_size=block
    )


def _rows(
    x: Array, attn_mask: ArrayLike | None, queries: ArrayLike | None
) -> tuple[Array, Array | None]:
    """Return the query rows `[q, m]` and what each may attend to `[q, t]`, or None for all."""
    t = x.shape[0]
    rows, allowed = x, None
    if queries is not None:
        queries = checks.array("queries", queries, ndim=1, kind="int")
        known = checks.concrete(queries)
        if known is not None and known.size:
            low, high = known.min(), known.max()
            if low < 0 or high >= t:
                raise checks.fail("queries", f"indices in [0, {t - 1}]", f"{low} to {high}")
        rows = x[queries]
    if attn_mask is not None:
        allowed = checks.array("attn_mask", attn_mask, shape=(t, t), kind="bool")
        if queries is not None:
            allowed = allowed[queries]
        known = checks.concrete(allowed)
        if known is not None:
            empty = np.sum(~known.any(axis=-1))
            if empty:
                raise checks.fail(
                    "attn_mask",
                    "True at least once in every row",
                    f"{empty} rows that attend to nothing",
                )
    return rows, allowed


def _key_root(params: AttentionParams) -> Array:
    """Return ``sqrt(k)`` in the dtype of the parameters."""
    return jnp.sqrt(jnp.asarray(params.key_width, params.w_q.dtype))


def _block_size(block_size: int | None, num_heads: int, t: int) -> int:
    if block_size is None:
        return max(1, _BLOCK_ENTRIES // max(1, num_heads * t))
    return checks.integer("block_size", block_size, low=1)


def _checked(params: AttentionParams) -> AttentionParams:
    """Refuse projections whose heads or widths do not fit together; return JAX arrays."""
    w_q = checks.array("params.w_q", params.w_q, ndim=3)
    h, m, k = w_q.shape
    w_k = checks.array("params.w_k", params.w_k, shape=(h, m, k))
    w_v = checks.array("params.w_v", params.w_v, shape=(h, m, None))
    w_o = checks.array("params.w_o", params.w_o, shape=(h, w_v.shape[-1], None))
    return params._replace(w_q=w_q, w_k=w_k, w_v=w_v, w_o=w_o)
