"""Distributions of source weights.

A source's numbers are defined once: hidden unit j of attention projection p (q, k, v, o counted
from 0) is drawn from its own key, ``fold_in(key, 4 j + p)``. So a source of width n is the first
n units of any wider source of the same key, up to the scale, and a program that pads widths draws
the same weights.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from slth_jax import checks
from slth_jax.types import Array, ArrayLike, AttentionParams, Key, PyTree

_Q, _K, _V, _O = range(4)


def theory_attention(
    key: Key,
    *,
    num_heads: int,
    d_in: int,
    d_out: int,
    n_k: ArrayLike,
    n_v: ArrayLike,
    padded: int | None = None,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> AttentionParams:
    """Draw the random source of the theory (paper, section 2).

    Entries of `w_q, w_k` are ``U[-n_k^(1/4), n_k^(1/4)]``, entries of `w_v, w_o` are ``U[-1, 1]``.

    Args:
      key: a typed PRNG key.
      num_heads, d_in, d_out: h, m and o of the target.
      n_k, n_v: source widths of keys and values; may be traced if `padded` is given.
      padded: draw projections of this static width, with zeros from `n_k` (or `n_v`) on.
      dtype: of the weights.

    Returns:
      `w_q, w_k [h, m, n_k]`, `w_v [h, m, n_v]`, `w_o [h, n_v, o]`.

    Raises:
      ValueError: a width below 1, or above `padded`.
    """
    one = jnp.ones((), dtype)
    scale = _fourth_root(n_k, dtype)
    return _attention(
        _uniform, key, (scale, scale, one, one), num_heads, d_in, d_out, n_k, n_v, padded, dtype
    )


def xavier_attention(
    key: Key,
    *,
    num_heads: int,
    d_in: int,
    d_out: int,
    n_k: ArrayLike,
    n_v: ArrayLike,
    scale_qk: bool = False,
    padded: int | None = None,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> AttentionParams:
    """Draw a Xavier-uniform source: ``U[-b, b]``, ``b = sqrt(6 / (fan_in + fan_out))`` per head.

    With `scale_qk` the query and key weights are multiplied by ``n_k^(1/4)`` (paper, appendix).
    Arguments, shapes and errors otherwise as in `theory_attention`.
    """

    def bound(fan_in: ArrayLike, fan_out: ArrayLike) -> Array:
        return jnp.sqrt(6 / (jnp.asarray(fan_in, dtype) + jnp.asarray(fan_out, dtype)))

    qk = bound(d_in, n_k) * (_fourth_root(n_k, dtype) if scale_qk else jnp.ones((), dtype))
    scales = (qk, qk, bound(d_in, n_v), bound(n_v, d_out))
    return _attention(_uniform, key, scales, num_heads, d_in, d_out, n_k, n_v, padded, dtype)


def scaled_xavier_attention(key: Key, **options) -> AttentionParams:
    """Draw `xavier_attention` with query and key weights times ``n_k^(1/4)``."""
    return xavier_attention(key, scale_qk=True, **options)


def signed_constant_attention(
    key: Key,
    *,
    num_heads: int,
    d_in: int,
    d_out: int,
    n_k: ArrayLike,
    n_v: ArrayLike,
    padded: int | None = None,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> AttentionParams:
    """Draw signs: ``+-n_k^(1/4)`` for `w_q, w_k` and ``+-1`` for `w_v, w_o`.

    The signed constant of Ramanujan et al. (2020) at the scales of the theory. Arguments, shapes
    and errors as in `theory_attention`.
    """
    one = jnp.ones((), dtype)
    scale = _fourth_root(n_k, dtype)
    return _attention(
        _signs, key, (scale, scale, one, one), num_heads, d_in, d_out, n_k, n_v, padded, dtype
    )


ATTENTION: dict[str, Callable[..., AttentionParams]] = {
    "theory": theory_attention,
    "xavier": xavier_attention,
    "xavier_scaled": scaled_xavier_attention,
    "signed_constant": signed_constant_attention,
}
"""Distributions of attention by the names that configurations use."""


def theory_blocks(
    key: Key,
    *,
    num_blocks: int,
    num_heads: int,
    d: int,
    n_k: ArrayLike,
    n_v: ArrayLike,
    padded: int | None = None,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> tuple[AttentionParams, ...]:
    """Draw `theory_attention`, d_in = d_out = d, for each block b from ``fold_in(key, b)``."""
    draw = partial(theory_attention, num_heads=num_heads, d_in=d, d_out=d, padded=padded)
    return tuple(
        draw(jax.random.fold_in(key, b), n_k=n_k, n_v=n_v, dtype=dtype)
        for b in range(checks.integer("num_blocks", num_blocks, low=1))
    )


SOURCES: dict[str, Callable[..., PyTree]] = {**ATTENTION, "theory_blocks": theory_blocks}
"""Everything that a ticket can name as its source."""


def units(
    draw: Callable[[Key, tuple[int, ...], jax.typing.DTypeLike], Array],
    key: Key,
    count: int,
    shape: tuple[int, ...],
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> Array:
    """Draw `count` hidden units of `shape`, unit j from ``fold_in(key, j)``: `[count, *shape]`."""
    keys = jax.vmap(lambda j: jax.random.fold_in(key, j))(jnp.arange(count))
    return jax.vmap(lambda unit_key: draw(unit_key, shape, dtype))(keys)


def uniform_units(
    key: Key, count: int, shape: tuple[int, ...], dtype: jax.typing.DTypeLike = jnp.float32
) -> Array:
    """Draw `count` hidden units with entries ``U[-1, 1]``: `[count, *shape]`."""
    return units(_uniform, key, count, shape, dtype)


def _uniform(key: Key, shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> Array:
    # 2u - 1 is exact for JAX's u, so compiled and eager draws agree to the bit.
    return 2 * jax.random.uniform(key, shape, dtype) - 1


def _signs(key: Key, shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> Array:
    return jax.random.rademacher(key, shape, dtype)


def _fourth_root(n: ArrayLike, dtype: jax.typing.DTypeLike) -> Array:
    # Square roots are correctly rounded everywhere; a general power is not.
    return jnp.sqrt(jnp.sqrt(jnp.asarray(n, dtype)))


def _attention(
    draw, key, scales, num_heads, d_in, d_out, n_k, n_v, padded, dtype
) -> AttentionParams:
    for name, value in (("num_heads", num_heads), ("d_in", d_in), ("d_out", d_out)):
        checks.integer(name, value, low=1)
    sizes = _size("n_k", n_k, padded), _size("n_v", n_v, padded)
    shape = (num_heads, max(d_in, d_out))
    drawn = _projections(draw, key, max(sizes), shape, jnp.dtype(dtype).name)

    def projection(index: int, n: ArrayLike, size: int, width: int) -> Array:
        kept = (jnp.arange(size) < n).astype(dtype)[:, None, None]
        return drawn[:size, index, :, :width] * scales[index] * kept  # [size, h, width]

    n_k_size, n_v_size = sizes
    return AttentionParams(
        w_q=projection(_Q, n_k, n_k_size, d_in).transpose(1, 2, 0),
        w_k=projection(_K, n_k, n_k_size, d_in).transpose(1, 2, 0),
        w_v=projection(_V, n_v, n_v_size, d_in).transpose(1, 2, 0),
        w_o=projection(_O, n_v, n_v_size, d_out).transpose(1, 0, 2),
    )


@partial(jax.jit, static_argnums=(0, 2, 3, 4))
def _projections(draw, key: Key, count: int, shape: tuple[int, ...], dtype: str) -> Array:
    """Draw all four projections, `[count, 4, *shape]`, with one compiled generator."""
    return units(draw, key, 4 * count, shape, dtype).reshape(count, 4, *shape)


def _size(name: str, n: ArrayLike, padded: int | None) -> int:
    """Return the static width of a projection: `padded`, or `n` itself."""
    if padded is None:
        return checks.integer(name, n, low=1)
    known = checks.concrete(n)
    if known is not None:
        checks.integer(name, known.item(), low=1, high=padded)
    return checks.integer("padded", padded, low=1)
