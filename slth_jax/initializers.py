"""Distributions of source weights.

A source's numbers are defined once: hidden unit j of attention projection p (q, k, v, o counted
from 0) is drawn from its own key, ``fold_in(key, 4 j + p)``. So a source of width n is the first
n units of any wider source of the same key, up to the scale, and a program that pads widths draws
the same weights.

A distribution of attention is one function, of the four scales, and one row of `ATTENTION`.
"""

import functools
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from slth_jax import checks
from slth_jax.types import Array, ArrayLike, AttentionParams, Key, PaddedAttention, PyTree

# Draws numbers of mean zero in [-1, 1]: ``draw(key, shape, dtype)``.
Draw = Callable[[Key, tuple[int, ...], jax.typing.DTypeLike], Array]
# The scales of w_q, w_k, w_v and w_o.
Scales = tuple[Array, Array, Array, Array]


def uniform(key: Key, shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> Array:
    """Draw ``U[-1, 1]``."""
    # 2u - 1 is exact for JAX's u, so compiled and eager draws agree to the bit.
    return 2 * jax.random.uniform(key, shape, dtype) - 1


def normal(key: Key, shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> Array:
    """Draw standard normal numbers; their last bits may differ between releases of JAX."""
    return jax.random.normal(key, shape, dtype)


def signs(key: Key, shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> Array:
    """Draw -1 and 1 with the same chance."""
    return jax.random.rademacher(key, shape, dtype)


def attention(draw: Draw) -> Callable[[Callable[..., Scales]], Callable[..., AttentionParams]]:
    """Turn ``scales(d_in, d_out, n_k, n_v, **options)`` into a distribution of attention."""

    def decorate(scales: Callable[..., Scales]) -> Callable[..., AttentionParams]:
        def distribution(
            key: Key,
            *,
            num_heads: int,
            d_in: int,
            d_out: int,
            n_k: ArrayLike,
            n_v: ArrayLike,
            padded: int | None = None,
            dtype: jax.typing.DTypeLike = jnp.float32,
            **options,
        ) -> AttentionParams:
            shape = {"num_heads": num_heads, "d_in": d_in, "d_out": d_out}
            for name, value in shape.items():
                checks.integer(name, value, low=1)
            sizes = _size("n_k", n_k, padded), _size("n_v", n_v, padded)
            numbers = (jnp.asarray(n, dtype) for n in (d_in, d_out, n_k, n_v))
            drawn = _projections(
                draw, key, max(sizes), (num_heads, max(d_in, d_out)), jnp.dtype(dtype).name
            )
            real = [jnp.arange(size) < n for size, n in zip(sizes, (n_k, n_v), strict=True)]
            weights = []
            for p, (scale, units, width) in enumerate(
                zip(
                    scales(*numbers, **options),
                    (real[0], real[0], real[1], real[1]),
                    (d_in, d_in, d_in, d_out),
                    strict=True,
                )
            ):
                part = drawn[: units.size, p, :, :width] * scale  # [n, h, width]
                part = part * units.astype(dtype)[:, None, None]
                weights.append(part.transpose((1, 0, 2) if p == 3 else (1, 2, 0)))
            return AttentionParams(*weights) if padded is None else PaddedAttention(*weights, *real)

        functools.update_wrapper(distribution, scales)
        del distribution.__dict__["__wrapped__"]  # so that help shows the signature above
        return distribution

    return decorate


@attention(uniform)
def theory_attention(d_in: Array, d_out: Array, n_k: Array, n_v: Array) -> Scales:
    """Draw the random source of the theory (paper, section 2).

    Entries of `w_q, w_k` are ``U[-n_k^(1/4), n_k^(1/4)]``, entries of `w_v, w_o` are ``U[-1, 1]``.

    Args:
      key: a typed PRNG key.
      num_heads, d_in, d_out: h, m and o of the target.
      n_k, n_v: source widths of keys and values; may be traced if `padded` is given.
      padded: draw projections of this static width, with zeros from `n_k` (or `n_v`) on.
      dtype: of the weights.

    Returns:
      `w_q, w_k [h, m, n_k]`, `w_v [h, m, n_v]`, `w_o [h, n_v, o]`; with `padded` as
      `types.PaddedAttention`, which knows its widths.

    Raises:
      ValueError: a width below 1, or above `padded`.
    """
    one = jnp.ones((), n_k.dtype)
    return _fourth_root(n_k), _fourth_root(n_k), one, one


@attention(uniform)
def xavier_attention(
    d_in: Array, d_out: Array, n_k: Array, n_v: Array, scale_qk: bool = False
) -> Scales:
    """Draw a Xavier-uniform source: ``U[-b, b]``, ``b = sqrt(6 / (fan_in + fan_out))`` per head.

    With ``scale_qk=True`` the query and key weights are multiplied by ``n_k^(1/4)`` (paper,
    appendix). Arguments, shapes and errors otherwise as in `theory_attention`.
    """
    qk = jnp.sqrt(6 / (d_in + n_k)) * (_fourth_root(n_k) if scale_qk else 1)
    return qk, qk, jnp.sqrt(6 / (d_in + n_v)), jnp.sqrt(6 / (n_v + d_out))


def scaled_xavier_attention(key: Key, **options) -> AttentionParams:
    """Draw `xavier_attention` with query and key weights times ``n_k^(1/4)``."""
    return xavier_attention(key, scale_qk=True, **options)


@attention(signs)
def signed_constant_attention(d_in: Array, d_out: Array, n_k: Array, n_v: Array) -> Scales:
    """Draw signs: ``+-n_k^(1/4)`` for `w_q, w_k` and ``+-1`` for `w_v, w_o`.

    The signed constant of Ramanujan et al. (2020) at the scales of the theory. Arguments, shapes
    and errors as in `theory_attention`.
    """
    one = jnp.ones((), n_k.dtype)
    return _fourth_root(n_k), _fourth_root(n_k), one, one


ATTENTION: dict[str, Callable[..., AttentionParams]] = {
    "theory": theory_attention,
    "xavier": xavier_attention,
    "xavier_scaled": scaled_xavier_attention,
    "signed_constant": signed_constant_attention,
}
"""Distributions of attention by the names that configurations use."""


def theory_blocks(
    key: Key, *, num_blocks: int, num_heads: int, d: int, **options
) -> tuple[AttentionParams, ...]:
    """Draw `theory_attention`, d_in = d_out = d, for each block b from ``fold_in(key, b)``.

    `options` are its `n_k`, `n_v`, `padded` and `dtype`.
    """
    draw = partial(theory_attention, num_heads=num_heads, d_in=d, d_out=d, **options)
    return tuple(
        draw(jax.random.fold_in(key, b))
        for b in range(checks.integer("num_blocks", num_blocks, low=1))
    )


SOURCES: dict[str, Callable[..., PyTree]] = {**ATTENTION, "theory_blocks": theory_blocks}
"""Everything that a ticket can name as its source."""


def uniform_units(
    key: Key, count: int, shape: tuple[int, ...], dtype: jax.typing.DTypeLike = jnp.float32
) -> Array:
    """Draw `count` hidden units with entries ``U[-1, 1]``: `[count, *shape]`."""
    return units(uniform, key, count, shape, dtype)


def units(
    draw: Draw,
    key: Key,
    count: int,
    shape: tuple[int, ...],
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> Array:
    """Draw `count` hidden units of `shape`, unit j from ``fold_in(key, j)``: `[count, *shape]`."""
    keys = jax.vmap(lambda j: jax.random.fold_in(key, j))(jnp.arange(count))
    return jax.vmap(lambda unit_key: draw(unit_key, shape, dtype))(keys)


@partial(jax.jit, static_argnums=(0, 2, 3, 4))
def _projections(draw: Draw, key: Key, count: int, shape: tuple[int, ...], dtype: str) -> Array:
    """Draw all four projections, `[count, 4, *shape]`, with one compiled generator."""
    return units(draw, key, 4 * count, shape, dtype).reshape(count, 4, *shape)


def _fourth_root(n: Array) -> Array:
    # Square roots are correctly rounded everywhere; a general power is not.
    return jnp.sqrt(jnp.sqrt(n))


def _size(name: str, n: ArrayLike, padded: int | None) -> int:
    """Return the static width of a projection: `padded`, or `n` itself."""
    if padded is None:
        return checks.integer(name, n, low=1)
    known = checks.concrete(n)
    if known is not None:
        checks.integer(name, known.item(), low=1, high=padded)
    return checks.integer("padded", padded, low=1)
