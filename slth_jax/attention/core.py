"""Multi-head attention as pure functions on explicit parameters.

The functions take no weight masks: to apply a ticket, pass ``weights * mask`` as the weights.

The letters in all shapes and einsums are: h heads, g key/value heads; input widths m of queries, n
of keys and l of values; k key width, v value width, o output width; q query tokens, t key/value
tokens. In self-attention m = n = l. In grouped-query attention g divides h, and each key/value head
serves h / g consecutive query heads.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Bool, Float

from slth_jax import checks
from slth_jax.types import Array, ArrayLike, AttentionParams, Memory, MergedParams, Projections

# The number of logits in one block of queries: 2^22 are 16 MiB in float32, 32 MiB in float64.
_BLOCK_ENTRIES = 1 << 22


def apply(
    params: Projections,
    x: ArrayLike,
    attn_mask: ArrayLike | None = None,
    *,
    memory: Memory | None = None,
    queries: ArrayLike | None = None,
    block_size: int | None = None,
    precision: str = "highest",
) -> Float[Array, "q o"]:
    """Compute multi-head attention of one sequence (paper, section 2).

    ``sum_h softmax_masked(x_i w_q (x w_k)^T / sqrt(k)) x w_v w_o`` for every row i. If `memory` is
    given, the result is cross-attention: ``sum_h softmax_masked(x_i w_q (keys w_k)^T / sqrt(k))
    values w_v w_o``.

    Args:
      params: `w_q [h, m, k]`, `w_k [g, n, k]`, `w_v [g, l, v]`, `w_o [h, v, o]`. The k in ``1 /
        sqrt(k)`` is `params.key_width`, the key width without padding (`types.PaddedAttention`). If
        g < h (grouped queries), each head uses a copy of the keys and values that it shares.
      x: the tokens of one sequence `[t, m]`. For a batch of sequences use `jax.vmap`.
      attn_mask: booleans `[t, t]`, or `[tokens of x, tokens of memory]`; True if token i may attend
        to token j. If `attn_mask` is None, every token may attend to all tokens. A mask in which a
        row has no True is refused. Under a JAX transformation the values of the mask are not known,
        and the output for a row without True is zero.
      memory: the tokens `[s, n]` from which keys and values are computed, or a tuple: the inputs of
        keys `[s, n]` and of values `[s, l]`. If `memory` is None, keys and values are computed from
        `x`.
      queries: the indices `[q]` of the tokens whose output is computed; None for all.
      block_size: the number of query tokens computed at once. If `block_size` is None, at most 2^22
        logits are in memory at once, so memory grows as t and not as t^2.
      precision: the precision of matrix products, as in `jax.default_matmul_precision`. JAX's own
        default on accelerators is too low to measure errors near 1e-6.

    Returns:
      The output `[t, o]`, or `[q, o]` if `queries` is given.

    Raises:
      ValueError: a shape, dtype or value does not fit; the error message names the argument.

    Examples:
      One head whose logits are all zero returns the mean of the tokens:

      >>> params = AttentionParams(*jnp.zeros((2, 1, 2, 1)), jnp.eye(2)[None], jnp.eye(2)[None])
      >>> x = jnp.array([[1.0, 0.0], [3.0, 4.0]])
      >>> apply(params, x).tolist()
      [[2.0, 2.0], [2.0, 2.0]]
      >>> apply(params, x, causal_mask(2)).tolist()
      [[1.0, 0.0], [2.0, 2.0]]
      >>> apply(params, x, memory=jnp.array([[5.0, 5.0], [7.0, 7.0], [9.0, 9.0]])).tolist()
      [[7.0, 7.0], [7.0, 7.0]]
    """
    w_q, w_k, w_v, w_o = validated("params", params)
    root = _key_root(params)
    tokens = _tokens(x, memory, attn_mask, queries, (w_q.shape[1], w_k.shape[1], w_v.shape[1]))
    block = _block_size(block_size, len(w_q), len(tokens.keys))

    with jax.default_matmul_precision(precision):
        keys = jnp.einsum("tn,hnk->htk", tokens.keys, w_k)
        values = jnp.einsum("tl,hlv->htv", tokens.values, w_v)

        def attend(
            x_rows: Float[Array, "q m"], may_attend: Bool[Array, "q t"] | None
        ) -> Float[Array, "q o"]:
            q = jnp.einsum("qm,hmk->hqk", x_rows, w_q)
            heads = jnp.einsum("hqt,htv->hqv", _softmax(_logits(q, keys, root), may_attend), values)
            return jnp.einsum("hqv,hvo->qo", heads, w_o)

        return checks.finite_result(_in_blocks(attend, tokens.rows, tokens.allowed, block))


def pattern(
    params: Projections,
    x: ArrayLike,
    attn_mask: ArrayLike | None = None,
    *,
    memory: Memory | None = None,
    precision: str = "highest",
) -> Float[Array, "h q t"]:
    """Return the attention weights ``softmax_masked(x_i w_q (x w_k)^T / sqrt(k))`` of each head.

    Args:
      params, x, attn_mask, memory, precision: the arguments of `apply`.

    Returns:
      The weights `[h, t, t]`, or `[h, tokens of x, tokens of memory]` if `memory` is given; each
      row sums to one. The array of weights grows as t^2, so the function is meant for pictures of
      short sequences.

    Raises:
      ValueError: as in `apply`.
    """
    w_q, w_k, w_v, _ = validated("params", params)
    tokens = _tokens(x, memory, attn_mask, None, (w_q.shape[1], w_k.shape[1], w_v.shape[1]))
    with jax.default_matmul_precision(precision):
        q = jnp.einsum("qm,hmk->hqk", tokens.rows, w_q)
        keys = jnp.einsum("tn,hnk->htk", tokens.keys, w_k)
        return checks.finite_result(_softmax(_logits(q, keys, _key_root(params)), tokens.allowed))


def merge(params: Projections) -> MergedParams:
    """Merge the four projections into the two matrices that attention depends on.

    ``w_qk = w_q w_k^T / sqrt(k)`` `[h, m, n]`, ``w_vo = w_v w_o`` `[h, l, o]` (paper, section 2).
    In grouped-query attention every head gets its own two matrices, computed from the keys and
    values that it shares with other heads.
    """
    w_q, w_k, w_v, w_o = validated("params", params)
    root = _key_root(params)
    with jax.default_matmul_precision("highest"):
        w_qk = jnp.einsum("hmk,hnk->hmn", w_q, w_k) / root
        w_vo = jnp.einsum("hmv,hvo->hmo", w_v, w_o)
    return MergedParams(checks.finite_result(w_qk), checks.finite_result(w_vo))


def apply_merged(
    merged: MergedParams,
    x: ArrayLike,
    attn_mask: ArrayLike | None = None,
    *,
    memory: Memory | None = None,
    queries: ArrayLike | None = None,
    block_size: int | None = None,
    precision: str = "highest",
) -> Float[Array, "q o"]:
    """Compute the result of `apply` from the merged matrices.

    ``sum_h softmax_masked(x_i w_qk x^T) x w_vo`` for every row i. If `memory` is given, it replaces
    the second and the third x of the formula. Arguments, shapes and errors are as in `apply`.
    """
    w_qk, w_vo = checks.record("merged", merged, MergedParams)
    h, m, n = checks.array("merged.w_qk", w_qk, ndim=3).shape
    _, l, _ = checks.array("merged.w_vo", w_vo, shape=(h, None, None)).shape
    tokens = _tokens(x, memory, attn_mask, queries, (m, n, l))
    block = _block_size(block_size, h, len(tokens.keys))

    with jax.default_matmul_precision(precision):
        values = jnp.einsum("tl,hlo->hto", tokens.values, w_vo)

        def attend(
            x_rows: Float[Array, "q m"], may_attend: Bool[Array, "q t"] | None
        ) -> Float[Array, "q o"]:
            logits = jnp.einsum("qm,hmn,tn->hqt", x_rows, w_qk, tokens.keys)
            return jnp.einsum("hqt,hto->qo", _softmax(logits, may_attend), values)

        return checks.finite_result(_in_blocks(attend, tokens.rows, tokens.allowed, block))


def error(
    ticket: Projections,
    target: Projections,
    x: ArrayLike,
    attn_mask: ArrayLike | None = None,
    *,
    memory: Memory | None = None,
    queries: ArrayLike | None = None,
) -> Float[Array, "*s"]:
    """Return the error of a ticket: ``max_i ||ticket(x)_i - target(x)_i||_2`` over the tokens i.

    The error is computed in the dtype of `x` or of the weights, whichever has more bits. Pass
    float64 inputs to measure errors near the rounding error of float32.

    Args:
      ticket: source weights times masks (`construction.apply_masks`).
      target: the attention layer to approximate; its numbers h, k and v may differ from those of
        the ticket.
      x: one sequence `[t, m]`, or sequences `[s, t, m]`; long sequences are computed one after
        another.
      attn_mask, queries: the arguments of `apply` with these names.
      memory: the argument of `apply` with this name; if `x` is `[s, t, m]`, the arrays of `memory`
        also have a first axis of length s.

    Returns:
      The error: a scalar for one sequence, an array `[s]` for s sequences.

    Raises:
      ValueError: as in `apply`.
    """
    sequences = checks.array("x", x, min_ndim=2)
    if 0 in sequences.shape[-2:]:
        raise checks.fail("x", "sequences of at least one token", f"shape {sequences.shape}")
    if queries is not None and not np.size(queries):
        raise checks.fail("queries", "at least one row", "none")
    of_target, of_ticket = validated("target", target), validated("ticket", ticket)
    checks.array("ticket.w_o", of_ticket.w_o, shape=(None, None, of_target.w_o.shape[-1]))
    for name in ("w_q", "w_k", "w_v"):
        width = getattr(of_target, name).shape[1]
        checks.array(f"ticket.{name}", getattr(of_ticket, name), shape=(None, width, None))
    if memory is not None:
        memory = _keys_and_values(memory, sequences.shape[:-2])
    dtype = jnp.result_type(sequences, ticket.w_q, target.w_q)
    # The weights are cast as well as the inputs, because ``sqrt(k)`` has the dtype of the weights.
    ticket, target, inputs = (_cast(p, dtype) for p in (ticket, target, (sequences, memory)))

    def largest(inputs: tuple[Array, Memory | None]) -> Float[Array, ""]:
        run = partial(apply, x=inputs[0], attn_mask=attn_mask, memory=inputs[1], queries=queries)
        return jnp.max(jnp.linalg.norm(run(ticket) - run(target), axis=-1))

    if sequences.ndim == 2:
        return checks.finite_result(largest(inputs))
    # Several long sequences computed at once would not fit into memory.
    one_by_one = max(part.shape[-2] for part in jax.tree.leaves(inputs)) > 512
    errors = jax.lax.map(largest, inputs) if one_by_one else jax.vmap(largest)(inputs)
    return checks.finite_result(errors)


_MOST = 1 << 17  # the largest number of rows of a mask, which then takes 16 GiB


def causal_mask(length: int) -> Bool[Array, "{length} {length}"]:
    """Return the causal mask: token i attends to tokens j <= i. `length` is at most 2^17."""
    length = checks.integer("length", length, low=0, high=_MOST)
    return jnp.tril(jnp.ones((length, length), bool))


def _logits(
    q: Float[Array, "h q k"], keys: Float[Array, "h t k"], root: Float[Array, ""]
) -> Float[Array, "h q t"]:
    if q.dtype.itemsize < 4:  # half precision: the products alone may overflow
        return jnp.einsum("hqk,htk->hqt", q / root, keys)
    return jnp.einsum("hqk,htk->hqt", q, keys) / root


def _softmax(
    logits: Float[Array, "h q t"], may_attend: Bool[Array, "q t"] | None
) -> Float[Array, "h q t"]:
    """Return the softmax over entries with `may_attend` true; rows without such entries are 0."""
    if may_attend is None:
        return jax.nn.softmax(logits, axis=-1)
    # A row that attends to nothing would give 0 / 0. Such a row first attends to all tokens; its
    # weights are then set to zero.
    attends = jnp.any(may_attend, axis=-1, keepdims=True)  # [q, 1]
    weights = jax.nn.softmax(logits, axis=-1, where=(may_attend | ~attends)[None])
    return jnp.where(attends[None], weights, 0)


def _in_blocks(
    attend: Callable,
    rows: Float[Array, "q m"],
    allowed: Bool[Array, "q t"] | None,
    block: int,
) -> Float[Array, "q o"]:
    """Apply `attend` to `rows` (the query tokens), `block` rows at a time."""
    if rows.shape[0] <= block:
        return attend(rows, allowed)
    if allowed is None:
        return jax.lax.map(lambda row: attend(row[None], None)[0], rows, batch_size=block)
    return jax.lax.map(
        lambda pair: attend(pair[0][None], pair[1][None])[0], (rows, allowed), batch_size=block
    )


def _gathered(x: Float[Array, "t m"]) -> Float[Array, "t m"]:
    """Copy all of `x` to every device if `x` is sharded over explicit axes of a mesh.

    Every token attends to every other token, so the logits would have two axes split over the same
    mesh axis, which JAX refuses for explicit axes.
    """
    sharding = jax.typeof(x).sharding
    if not any(part is not None for part in sharding.spec):
        return x
    return jax.sharding.reshard(x, NamedSharding(sharding.mesh, jax.P(None, None)))


class _Tokens(NamedTuple):
    """The validated query tokens, inputs of keys and values, and mask of an attention layer."""

    rows: Float[Array, "q m"]
    keys: Float[Array, "t n"]
    values: Float[Array, "t l"]
    allowed: Bool[Array, "q t"] | None  # which tokens each row may attend to (None: all)


def _tokens(
    x: ArrayLike,
    memory: Memory | None,
    attn_mask: ArrayLike | None,
    queries: ArrayLike | None,
    widths: tuple[int, int, int],
) -> _Tokens:
    """Validate the query tokens and the inputs of keys and values, whose widths are (m, n, l)."""
    m, n, l = widths
    x = _gathered(checks.array("x", x, shape=(None, m)))
    if memory is not None:
        keys, values = map(_gathered, _keys_and_values(memory, ()))
        for index, (part, width) in enumerate(((keys, n), (values, l))):
            name = f"memory[{index}]" if isinstance(memory, tuple) else "memory"
            checks.array(name, part, shape=(None, width))
    elif m == n == l:
        keys = values = x
    else:
        given = f"given for keys of width {n}, values of width {l} and queries of width {m}"
        raise checks.fail("memory", given, None)
    rows = x
    if queries is not None:
        queries = checks.array("queries", queries, ndim=1, kind="int")
        known = checks.concrete(queries)
        if known is not None and known.size:
            low, high = known.min(), known.max()
            if low < 0 or high >= len(x):
                raise checks.fail("queries", f"indices in [0, {len(x) - 1}]", f"{low} to {high}")
        rows = x[queries]
    if attn_mask is None:
        return _Tokens(rows, keys, values, None)
    dtype = getattr(attn_mask, "dtype", bool)
    if jnp.issubdtype(dtype, jnp.floating):  # perhaps the memory, as a third argument
        hint = "a boolean array; keys and values are given as memory=..."
        raise checks.fail("attn_mask", hint, f"dtype {dtype}")
    allowed = checks.array("attn_mask", attn_mask, shape=(len(x), len(keys)), kind="bool")
    if queries is not None:
        allowed = allowed[queries]
    known = checks.concrete(allowed)
    if known is not None and not known.any(axis=-1).all():
        empty = f"{np.sum(~known.any(axis=-1))} rows that attend to nothing"
        raise checks.fail("attn_mask", "True at least once in every row", empty)
    return _Tokens(rows, keys, values, allowed)


def _keys_and_values(memory: Memory, lead: tuple[int, ...]) -> tuple[Array, Array]:
    """Return the inputs of keys and of values: `[*lead, t, n]` and `[*lead, t, l]`."""
    if not isinstance(memory, tuple):
        memory = (memory, memory)
    if len(memory) != 2:
        raise checks.fail("memory", "one array, or a tuple of two", f"{len(memory)} of them")
    keys = checks.array("memory", memory[0], shape=(*lead, None, None))
    values = checks.array("memory", memory[1], shape=(*lead, keys.shape[-2], None))
    if not keys.shape[-2]:
        raise checks.fail("memory", "at least one token", f"shape {keys.shape}")
    return keys, values


def _key_root(params: Projections) -> Float[Array, ""]:
    """Return ``sqrt(k)`` in the dtype of the parameters."""
    dtype = jax.dtypes.canonicalize_dtype(params.w_q.dtype)
    return jnp.sqrt(jnp.asarray(params.key_width, dtype))


def _cast(tree, dtype):
    """Convert the floating-point arrays of a tree to `dtype`."""
    return jax.tree.map(
        lambda w: w.astype(dtype) if jnp.issubdtype(w.dtype, jnp.floating) else w, tree
    )


def _block_size(block_size: int | None, num_heads: int, t: int) -> int:
    if block_size is None:
        return max(1, _BLOCK_ENTRIES // max(1, num_heads * t))
    return checks.integer("block_size", block_size, low=1)


def validated(name: str, params: Projections) -> AttentionParams:
    """Return projections as JAX arrays; refuse widths or numbers of heads that do not fit together.

    Keys and values that several heads share are repeated for each head: `w_k [h, n, k]`, `w_v [h,
    l, v]`.
    """
    checks.record(name, params, Projections)
    w_q = checks.array(f"{name}.w_q", params.w_q, ndim=3)
    h, _, k = w_q.shape
    if 0 in w_q.shape:
        raise checks.fail(f"{name}.w_q", "an array without empty dimensions", f"shape {w_q.shape}")
    w_v = checks.array(f"{name}.w_v", params.w_v, ndim=3)
    g = w_v.shape[0]
    if not g or h % g:
        raise checks.fail(f"{name}.w_v", f"of a number of heads that divides {h}", g)
    w_k = checks.array(f"{name}.w_k", params.w_k, shape=(g, None, k))
    w_o = checks.array(f"{name}.w_o", params.w_o, shape=(h, w_v.shape[-1], None))
    for field, w in (("w_k", w_k), ("w_v", w_v)):
        if not w.shape[1]:
            raise checks.fail(f"{name}.{field}", "of an input width above 0", f"shape {w.shape}")
    if g != h:
        w_k, w_v = (jnp.repeat(w, h // g, axis=0) for w in (w_k, w_v))
    return AttentionParams(w_q, w_k, w_v, w_o)
