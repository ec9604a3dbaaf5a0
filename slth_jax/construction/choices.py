"""Pack a mask that keeps exactly one of every 2^b neighbouring units: b bits per kept unit.

The last axis of such a mask consists of r groups of M = 2^b units. Each row keeps exactly one unit
per group; the number of this unit within its group is the group's *digit*. A row of the mask is
stored as r digits of b bits each (highest bit first) and padded to whole bytes.
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Bool, Int, UInt8

from slth_jax.types import Array, ArrayLike


def num_bytes(shape: Sequence[int], bits: int) -> int:
    """Return the number of bytes into which `pack` packs a mask of shape `shape`."""
    *rows, units = shape
    return math.prod(rows) * -(-(units >> bits) * bits // 8)


def pack(digits: Int[Array, "*rows r"], bits: int) -> UInt8[Array, "*rows bytes"]:
    """Pack digits, each below ``2^bits``, into bytes."""
    places = jnp.arange(bits - 1, -1, -1, dtype=digits.dtype)
    ones = jnp.bitwise_and(jnp.right_shift(digits[..., None], _along(places, digits.ndim)), 1)
    return jnp.packbits(ones.reshape(*digits.shape[:-1], -1).astype(bool), axis=-1)


def unpack(packed: UInt8[ArrayLike, "*rows bytes"], r: int, bits: int) -> Int[Array, "*rows r"]:
    """Undo `pack`: return the r digits (numbers of kept units) of each row of bytes."""
    packed = jnp.asarray(packed)
    ones = jnp.unpackbits(packed, axis=-1, count=r * bits).reshape(*packed.shape[:-1], r, bits)
    values = 1 << jnp.arange(bits - 1, -1, -1, dtype=jnp.int32)
    return jnp.sum(ones * _along(values, ones.ndim - 1), axis=-1, dtype=jnp.int32)


def mask(digits: Int[Array, "*rows r"], bits: int) -> Bool[Array, "*rows units"]:
    """Return the mask for these digits: it keeps one of every ``2^bits`` units."""
    units = jnp.arange(1 << bits, dtype=jnp.int32)
    kept = digits[..., None] == _along(units, digits.ndim)
    return kept.reshape(*digits.shape[:-1], -1)


def _along(values: Int[Array, " n"], axes: int) -> Int[Array, "..."]:
    """Return `values` with `axes` axes of length one inserted before its last axis."""
    return values.reshape((1,) * axes + values.shape)
