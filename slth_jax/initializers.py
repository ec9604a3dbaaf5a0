"""Draw the random weights of sources, the networks that are then masked.

The random numbers of a source do not depend on its width. Hidden unit j of attention projection p
(0, 1, 2, 3 for q, k, v, o) is drawn from the key ``fold_in(key, 4 j + p)``. Therefore, up to the
scale, a source of width n consists of the first n units of any wider source with the same key.
Padding arrays to a larger width does not change the weights drawn.

Each distribution of attention weights is a function with an entry in `ATTENTION`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from slth_jax import checks
from slth_jax.types import (
    Array,
    ArrayLike,
    AttentionParams,
    Block,
    Key,
    Linear,
    PaddedAttention,
    Projections,
    PyTree,
)

DTypeLike = jax.typing.DTypeLike
_LAYERS = 2**31  # the ReLU layers of block b are drawn from fold_in(key, 2^31 + b)
# A function ``draw(key, shape, dtype)`` that draws random numbers with mean zero.
Draw = Callable[[Key, tuple[int, ...], DTypeLike], Array]

_LARGEST = 2**31 - 1  # the largest size of a dimension


def uniform(key: Key, shape: tuple[int, ...], dtype: DTypeLike) -> Float[Array, "*shape"]:
    """Draw ``U[-1, 1]``."""
    # 2u - 1 is exact for the u that JAX draws, so compiled and eager draws are bit-identical.
    return 2 * jax.random.uniform(key, shape, dtype) - 1


def normal(key: Key, shape: tuple[int, ...], dtype: DTypeLike) -> Float[Array, "*shape"]:
    """Draw standard normal numbers, whose last bits may differ between JAX releases."""
    return jax.random.normal(key, shape, dtype)


def signs(key: Key, shape: tuple[int, ...], dtype: DTypeLike) -> Float[Array, "*shape"]:
    """Draw -1 and 1 with equal probability."""
    return jax.random.rademacher(key, shape, dtype)


def theory_attention(
    key: Key,
    *,
    num_heads: int,
    d_in: int,
    d_out: int,
    n_k: ArrayLike,
    n_v: ArrayLike,
    d_memory: int | Sequence[int] | None = None,
    padded: int | None = None,
    dtype: DTypeLike = jnp.float32,
) -> Projections:
    """Draw a random attention layer as the paper's theory assumes (section 2).

    Entries of `w_q, w_k` are ``U[-n_k^(1/4), n_k^(1/4)]``, and entries of `w_v, w_o` are ``U[-1,
    1]``.

    Args:
      key: a typed PRNG key.
      num_heads, d_in, d_out: the target's number of heads h, input width m and output width o.
      n_k, n_v: the source's key width and value width; may be traced if `padded` is given.
      d_memory: for cross-attention, the input width of keys and values, or a pair (width of keys,
        width of values); None means d_in.
      padded: a static width for the arrays, whose units from index `n_k` (or `n_v`) on are zeros.
        If `padded` is None, the arrays have the widths `n_k` and `n_v` without padding.
      dtype: the dtype of the weights.

    Returns:
      `w_q, w_k [h, m, n_k]`, `w_v [h, m, n_v]`, `w_o [h, n_v, o]`. If `d_memory` is given, its
      widths replace m in `w_k` and `w_v`. If `padded` is given, the result is a
      `types.PaddedAttention`, which also stores which units are padding.

    Raises:
      ValueError: a width is below 1 or above `padded`.
    """
    shape = _shape(num_heads, d_in, d_out, d_memory, n_k, n_v, padded, dtype)
    return _draw_attention(uniform, key, shape, (_fourth_root(shape.n_k),) * 2 + (shape.unit,) * 2)


def xavier_attention(
    key: Key,
    *,
    num_heads: int,
    d_in: int,
    d_out: int,
    n_k: ArrayLike,
    n_v: ArrayLike,
    d_memory: int | Sequence[int] | None = None,
    padded: int | None = None,
    dtype: DTypeLike = jnp.float32,
    scale_qk: bool = False,
) -> Projections:
    """Draw a Xavier-uniform source: ``U[-b, b]``, ``b = sqrt(6 / (fan_in + fan_out))`` per head.

    If `scale_qk` is true, the query and key weights are multiplied by ``n_k^(1/4)`` (paper,
    appendix). All other arguments, the shapes and the errors are as in `theory_attention`.
    """
    shape = _shape(num_heads, d_in, d_out, d_memory, n_k, n_v, padded, dtype)
    scale = _fourth_root(shape.n_k) if scale_qk else 1
    q, k = (jnp.sqrt(6 / (width + shape.n_k)) * scale for width in (shape.d_in, shape.d_keys))
    v = jnp.sqrt(6 / (shape.d_values + shape.n_v))
    o = jnp.sqrt(6 / (shape.n_v + shape.d_out))
    return _draw_attention(uniform, key, shape, (q, k, v, o))


def scaled_xavier_attention(
    key: Key,
    *,
    num_heads: int,
    d_in: int,
    d_out: int,
    n_k: ArrayLike,
    n_v: ArrayLike,
    d_memory: int | Sequence[int] | None = None,
    padded: int | None = None,
    dtype: DTypeLike = jnp.float32,
) -> Projections:
    """Draw `xavier_attention` with query and key weights multiplied by ``n_k^(1/4)``."""
    return xavier_attention(
        key,
        num_heads=num_heads,
        d_in=d_in,
        d_out=d_out,
        n_k=n_k,
        n_v=n_v,
        d_memory=d_memory,
        padded=padded,
        dtype=dtype,
        scale_qk=True,
    )


def signed_constant_attention(
    key: Key,
    *,
    num_heads: int,
    d_in: int,
    d_out: int,
    n_k: ArrayLike,
    n_v: ArrayLike,
    d_memory: int | Sequence[int] | None = None,
    padded: int | None = None,
    dtype: DTypeLike = jnp.float32,
) -> Projections:
    """Draw weights ``+-n_k^(1/4)`` for `w_q, w_k` and ``+-1`` for `w_v, w_o`, with random signs.

    The weights have the signed-constant distribution of Ramanujan et al. (2020), with the scales of
    `theory_attention`. Arguments, shapes and errors are as in `theory_attention`.
    """
    shape = _shape(num_heads, d_in, d_out, d_memory, n_k, n_v, padded, dtype)
    return _draw_attention(signs, key, shape, (_fourth_root(shape.n_k),) * 2 + (shape.unit,) * 2)


ATTENTION: dict[str, Callable[..., Projections]] = {
    "theory": theory_attention,
    "xavier": xavier_attention,
    "xavier_scaled": scaled_xavier_attention,
    "signed_constant": signed_constant_attention,
}
"""Distributions of attention by the names that configurations use."""


def theory_blocks(
    key: Key, *, num_blocks: int, num_heads: int, d: int, **options
) -> tuple[Projections, ...]:
    """For each block b draw `theory_attention` with d_in = d_out = d from ``fold_in(key, b)``.

    `options` are the arguments `n_k`, `n_v`, `padded` and `dtype` of `theory_attention`.
    """
    key = checks.key("key", key)
    _checked_size("d", d)
    keys = (
        jax.random.fold_in(key, b) for b in range(checks.integer("num_blocks", num_blocks, low=1))
    )
    return tuple(theory_attention(k, num_heads=num_heads, d_in=d, d_out=d, **options) for k in keys)


def theory_layers(key: Key, widths: Sequence[int], units: Sequence[int]) -> tuple[Linear, ...]:
    """Draw two random layers per layer of a target ReLU net, with entries ``U[-1, 1]`` (Lemma 2).

    Args:
      key: a typed PRNG key; hidden unit j of the pair of layers l is drawn from
        ``fold_in(fold_in(key, l), j)``.
      widths: the target's number of inputs, then the number of outputs of each target layer.
      units: for each pair of layers, the number of hidden units between the two layers.

    Returns:
      Layers without biases, two per layer of the target: first `[n, i]`, then `[o, n]`.
    """
    key = checks.key("key", key)
    for name, sizes in (("widths", widths), ("units", units)):
        for index, size in enumerate(checks.sequence(name, sizes)):
            _checked_size(f"{name}[{index}]", size)
    if len(units) != len(widths) - 1:
        allowed = f"{len(widths) - 1} numbers, as many as layers"
        raise checks.fail("units", allowed, len(units))
    layers: list[Linear] = []
    for l, (i, o, n) in enumerate(zip(widths, widths[1:], units, strict=False)):
        rows = uniform_units(jax.random.fold_in(key, l), n, (i + o,))
        layers += [Linear(rows[:, :i]), Linear(rows[:, i:].T)]
    return tuple(layers)


def theory_transformer(
    key: Key,
    *,
    num_blocks: int,
    num_heads: int,
    d: int,
    hidden: Sequence[int],
    units: Sequence[int],
    **options: Any,
) -> tuple[Block, ...]:
    """Draw a random transformer as the theory assumes (paper, Theorems 11 and 14), without biases.

    Block b has the attention weights of `theory_blocks`. The ReLU layers of block b are drawn by
    `theory_layers` from ``fold_in(key, 2^31 + b)``. These ReLU layers suit a target ReLU network
    with d inputs, d outputs and hidden layers of the widths `hidden`.

    Args:
      key: a typed PRNG key.
      num_blocks: the number of blocks.
      num_heads: the number of attention heads per block.
      d: the width of the tokens.
      hidden: the widths of the hidden layers of the target's ReLU network.
      units: for each layer of the target's ReLU network, the number of hidden units between the two
        source layers that approximate it; one entry more than `hidden`.
      options: the arguments `n_k`, `n_v`, `padded` and `dtype` of `theory_attention`.
    """
    key, hidden = checks.key("key", key), checks.sequence("hidden", hidden)
    for index, size in enumerate(hidden):
        _checked_size(f"hidden[{index}]", size)
    attentions = theory_blocks(key, num_blocks=num_blocks, num_heads=num_heads, d=d, **options)
    widths = (d, *hidden, d)
    return tuple(
        Block(attention, theory_layers(jax.random.fold_in(key, _LAYERS + b), widths, units))
        for b, attention in enumerate(attentions)
    )


SOURCES: dict[str, Callable[..., PyTree]] = {
    **ATTENTION,
    "theory_blocks": theory_blocks,
    "theory_transformer": theory_transformer,
}
"""Distributions that a ticket can name as its source."""


def uniform_units(
    key: Key, count: int, shape: tuple[int, ...], dtype: jax.typing.DTypeLike = jnp.float32
) -> Array:
    """Draw `count` hidden units with entries ``U[-1, 1]``; return `[count, *shape]`."""
    return units(uniform, key, count, shape, dtype)


def units(
    draw: Draw,
    key: Key,
    count: int,
    shape: tuple[int, ...],
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> Array:
    """Draw hidden units of `shape`, with unit j from ``fold_in(key, j)``: `[count, *shape]`."""
    keys = jax.vmap(lambda j: jax.random.fold_in(key, j))(jnp.arange(count))
    return jax.vmap(lambda unit_key: draw(unit_key, shape, dtype))(keys)


class _Shape(NamedTuple):
    """The validated shape of an attention layer; its sizes are scalars in the weights' dtype."""

    heads_and_width: tuple[int, int]  # h, and the largest of the widths
    widths: tuple[int, int, int, int]  # the outer dimension of w_q, w_k, w_v and w_o
    real: tuple[Array, Array]  # whether each unit of keys and of values is not padding
    d_in: Array
    d_keys: Array
    d_values: Array
    d_out: Array
    n_k: Array
    n_v: Array
    is_padded: bool

    @property
    def unit(self) -> Array:
        """The number 1 in the dtype of the weights."""
        return jnp.ones((), self.n_k.dtype)


def _shape(
    num_heads: int,
    d_in: int,
    d_out: int,
    d_memory: int | Sequence[int] | None,
    n_k: ArrayLike,
    n_v: ArrayLike,
    padded: int | None,
    dtype: DTypeLike,
) -> _Shape:
    num_heads = _checked_size("num_heads", num_heads)
    d_in, d_out = _checked_size("d_in", d_in), _checked_size("d_out", d_out)
    if padded is not None:
        padded = _checked_size("padded", padded)
    if d_memory is None:
        d_memory = d_in
    pair = d_memory if isinstance(d_memory, Sequence) else (d_memory, d_memory)
    if len(pair) != 2:
        raise checks.fail("d_memory", "a width, or the widths of keys and values", d_memory)
    d_keys, d_values = (_checked_size("d_memory", width) for width in pair)
    n_k, n_v = _width("n_k", n_k, padded), _width("n_v", n_v, padded)
    sizes = [n if padded is None else padded for n in (n_k, n_v)]
    real_k, real_v = (jnp.arange(size) < n for size, n in zip(sizes, (n_k, n_v), strict=True))
    widths = (d_in, d_keys, d_values, d_out)
    return _Shape(
        heads_and_width=(num_heads, max(widths)),
        widths=widths,
        real=(real_k, real_v),
        d_in=jnp.asarray(d_in, dtype),
        d_keys=jnp.asarray(d_keys, dtype),
        d_values=jnp.asarray(d_values, dtype),
        d_out=jnp.asarray(d_out, dtype),
        n_k=jnp.asarray(n_k, dtype),
        n_v=jnp.asarray(n_v, dtype),
        is_padded=padded is not None,
    )


def _draw_attention(
    draw: Draw, key: Key, shape: _Shape, scales: tuple[Array, Array, Array, Array]
) -> Projections:
    """Draw the four projections, each multiplied by its scale."""
    key = checks.key("key", key)
    real_k, real_v = shape.real
    count, dtype = max(real_k.size, real_v.size), shape.n_k.dtype
    drawn = _projections(draw, key, count, shape.heads_and_width, dtype.name)
    weights: list[Array] = []
    for p, (scale, units, width) in enumerate(
        zip(scales, (real_k, real_k, real_v, real_v), shape.widths, strict=True)
    ):
        part = drawn[: units.size, p, :, :width] * scale  # [n, h, width]
        part = part * units.astype(dtype)[:, None, None]
        weights.append(part.transpose((1, 0, 2) if p == 3 else (1, 2, 0)))
    w_q, w_k, w_v, w_o = weights
    if shape.is_padded:
        return PaddedAttention(w_q, w_k, w_v, w_o, k_units=real_k, v_units=real_v)
    return AttentionParams(w_q, w_k, w_v, w_o)


@partial(jax.jit, static_argnums=(0, 2, 3, 4))
def _projections(
    draw: Draw, key: Key, count: int, shape: tuple[int, ...], dtype: str
) -> Float[Array, "{count} 4 *shape"]:
    """Draw all four projections with one compiled generator."""
    return units(draw, key, 4 * count, shape, dtype).reshape(count, 4, *shape)


def _fourth_root(n: Float[Array, ""]) -> Float[Array, ""]:
    # Square roots are correctly rounded on every device; a general power is not.
    return jnp.sqrt(jnp.sqrt(n))


def _checked_size(name: str, size: ArrayLike) -> int:
    """Return the size of a dimension; refuse sizes above 2^31 - 1, the limit of JAX."""
    checked = checks.integer(name, size, low=1)
    if checked > _LARGEST:
        raise checks.fail(name, f"at most {_LARGEST}", checked)
    return checked


def _width(name: str, n: ArrayLike, padded: int | None) -> ArrayLike:
    """Check and return the number `n` of hidden units; if `padded` is given, it may be traced."""
    if padded is None:
        return _checked_size(name, n)
    known = checks.concrete(n)
    if known is None:
        return n
    if known.ndim:
        raise checks.fail(name, "a whole number", f"shape {known.shape}")
    return checks.integer(name, known.item(), low=1, high=padded)
