"""Pack masks that keep one unit of each M = 2^b neighbouring units into b bits per choice.

The last axis of such a mask has r groups of M units, and each row keeps exactly one unit per group,
its *digit*. A row is stored as its r digits of b bits, the highest bit first, padded to whole
bytes.
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Bool, Int, UInt8

from slth_jax.types import Array, ArrayLike


def num_bytes(shape: Sequence[int], bits: int) -> int:
    """Return the number of bytes into which `pack` packs a mask with this shape."""
    *rows, units = shape
    return math.prod(rows) * -(-(units >> bits) * bits // 8)


def pack(digits: Int[Array, "*rows r"], bits: int) -> UInt8[Array, "*rows bytes"]:
    """Pack digits, each below ``2^bits``, into bytes."""
    places = jnp.arange(bits - 1, -1, -1, dtype=digits.dtype)
    ones = jnp.bitwise_and(jnp.right_shift(digits[..., None], _along(places, digits.ndim)), 1)
    return jnp.packbits(ones.reshape(*digits.shape[:-1], -1).astype(bool), axis=-1)


def unpack(packed: UInt8[ArrayLike, "*rows bytes"], r: int, bits: int) -> Int[Array, "*rows r"]:
    """Return the r digits of each row of packed bytes."""
    packed = jnp.asarray(packed)
    ones = jnp.unpackbits(packed, axis=-1, count=r * bits).reshape(*packed.shape[:-1], r, bits)
    values = 1 << jnp.arange(bits - 1, -1, -1, dtype=jnp.int32)
    return jnp.sum(ones * _along(values, ones.ndim - 1), axis=-1, dtype=jnp.int32)


def mask(digits: Int[Array, "*rows r"], bits: int) -> Bool[Array, "*rows units"]:
    """Return the mask that keeps, of each group of ``2^bits`` units, the unit its digit chooses."""
    units = jnp.arange(1 << bits, dtype=jnp.int32)
    kept = digits[..., None] == _along(units, digits.ndim)
    return kept.reshape(*digits.shape[:-1], -1)


def _along(values: Int[Array, " n"], axes: int) -> Int[Array, "..."]:
    """Reshape `values` to `axes` axes of length one, followed by the axis of the values."""
    return values.reshape((1,) * axes + values.shape)
