"""Turn scores into masks; the number of kept connections is computed in this module only.

A mask is 1 where a connection is kept. A mask keeps the connections with the largest |score|
(edge-popup, Ramanujan et al. 2020), exactly `num_kept` of them even if scores are equal. The
threshold is found by bisection on the bits of the scores: scores are counted, not sorted. The
counts of all shards are added, so sharded scores are not moved between devices.
"""

import functools
import math
from collections.abc import Sequence
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8, UInt32

from slth_jax import checks
from slth_jax.types import ArrayLike, PyTree

_MAX_SIZE = 2**32 - 2  # counts and positions are uint32
_MILLION = 1_000_000


def num_kept(size: int, keep: ArrayLike) -> int:
    """Return how many of `size` connections are kept, given the fraction `keep`.

    The number of kept connections is ``max(1, floor(keep size + 1/2))``, computed exactly from the
    decimal number that Python prints for `keep`. For example, 0.29 of 50 is 15 (14.5 rounded up),
    whether `keep` is a Python float or a float32.

    Raises:
      ValueError: `keep` is outside (0, 1], or `size` is outside [1, 2^32 - 2].
    """
    checks.integer("size", size, low=1, high=_MAX_SIZE)
    return max(1, math.floor(Fraction(str(_checked_keep(keep))) * size + Fraction(1, 2)))


def num_kept_traced(size: int, keep: ArrayLike) -> UInt32[Array, ""]:
    """Return `num_kept` as a uint32 array for a `keep` that JAX traces.

    A traced `keep` is rounded to millionths, because float32 has no more digits. If `keep` is a
    whole number of millionths, the result equals `num_kept` at every size. Values of `keep` at or
    below 0 give one connection, values above 1 give all connections.
    """
    checks.integer("size", size, low=1, high=_MAX_SIZE)
    millionths = jnp.clip(jnp.round(jnp.asarray(keep) * _MILLION), 0, _MILLION).astype(jnp.uint32)
    # floor((millionths size + 500,000) / 1,000,000) without leaving 32 bits.
    whole, rest = divmod(size, _MILLION)
    thousands, ones = divmod(rest, 1000)
    high = millionths * np.uint32(thousands)
    low = (high % 1000) * 1000 + millionths * np.uint32(ones) + np.uint32(_MILLION // 2)
    count = millionths * np.uint32(whole) + high // 1000 + low // np.uint32(_MILLION)
    return jnp.maximum(count, 1)


def from_scores(
    scores: Float[ArrayLike, "*shape"],
    keep: ArrayLike,
    *,
    magnitude: bool = True,
) -> Bool[Array, "*shape"]:
    """Return a mask that keeps a fraction `keep` of connections: those with the largest |score|.

    Args:
      scores: floating-point numbers in any shape and sharding; up to 2^32 - 2 entries.
      keep: the fraction to keep, in (0, 1]; may be traced (see `num_kept_traced`).
      magnitude: True ranks by |score|, False by the score itself.

    Returns:
      Booleans in the shape of `scores`, of which exactly ``num_kept(scores.size, keep)`` are True.
      If several scores equal the threshold, those that come first in C order are kept.

    Raises:
      ValueError: `keep` is outside (0, 1], or scores are not floating-point, are empty or contain
        NaN. If values are not known because of a JAX transformation, a NaN ranks above all numbers
        and is kept.

    Examples:
      >>> from_scores(jnp.array([0.1, -0.9, 0.5, 0.0]), keep=0.5).tolist()
      [False, True, True, False]
    """
    return from_tree([scores], keep, magnitude=magnitude)[0]


def from_tree(scores: PyTree, keep: ArrayLike, *, magnitude: bool = True) -> PyTree:
    """Return masks with one threshold over a whole tree of scores ("global" edge-popup).

    The result equals `from_scores` applied to the concatenation of all leaves. Leaves may have
    different dtypes.
    """
    leaves, treedef = jax.tree.flatten(scores)
    leaves = [checks.array("scores", leaf, min_ndim=1, finite=False) for leaf in leaves]
    for leaf in leaves:
        known = checks.concrete(leaf)
        bad = 0 if known is None else int(np.sum(np.isnan(known)))
        if bad:
            raise checks.fail("scores", "free of NaN", f"{bad} NaN of {leaf.size} entries")
    size = sum(leaf.size for leaf in leaves)
    if not size:
        raise checks.fail("scores", "at least one entry", "none")
    if isinstance(keep, jax.core.Tracer):
        count = num_kept_traced(size, keep)
    else:
        count = jnp.uint32(num_kept(size, keep))
    return jax.tree.unflatten(treedef, _largest(leaves, count, magnitude))


@jax.custom_jvp
def straight_through(
    scores: Float[Array, "*shape"], mask: Bool[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """Return `mask` in the dtype of `scores`, with the gradient of ``|scores|``.

    In `weights * straight_through(scores, mask)` every score has the gradient ``g w sign(score)``,
    whether or not its connection is kept. Here w is the weight, and g is the gradient of the masked
    weight. The gradient is equation 5 of Ramanujan et al. 2020, with |score| as in their published
    code.
    """
    return mask.astype(scores.dtype)


@straight_through.defjvp
def _straight_through_jvp(primals, tangents):
    scores, mask = primals
    return straight_through(scores, mask), tangents[0] * jnp.sign(scores)


@jax.custom_jvp
def straight_through_raw(
    scores: Float[Array, "*shape"], mask: Bool[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """Return `mask` in the dtype of `scores`, with the gradient of `scores` themselves.

    Use `straight_through_raw` if masks rank connections by the score and not by |score|. In
    `weights * straight_through_raw(scores, mask)` every score has the gradient ``g w``.
    """
    return mask.astype(scores.dtype)


@straight_through_raw.defjvp
def _straight_through_raw_jvp(primals, tangents):
    return straight_through_raw(*primals), tangents[0]


def pack(mask: Bool[ArrayLike, "*shape"]) -> UInt8[Array, " bytes"]:
    """Pack a boolean mask into uint8, eight connections per byte, in C order, highest bit first.

    The result has ``ceil(size / 8)`` bytes and equals that of `numpy.packbits`. Unused bits of the
    last byte are 0.

    Raises:
      ValueError: `mask` is not boolean.
    """
    return jnp.packbits(checks.array("mask", mask, kind="bool").reshape(-1))


def unpack(bits: UInt8[ArrayLike, " bytes"], shape: Sequence[int]) -> Bool[Array, "*shape"]:
    """Return the boolean mask of `shape` that `pack` packed into `bits`.

    Raises:
      ValueError: `bits` is not uint8 or its length does not fit `shape`.
    """
    shape = tuple(checks.integer("shape", size, low=0) for size in checks.sequence("shape", shape))
    bits = checks.array("bits", bits, ndim=1, kind="int")
    if bits.dtype != jnp.uint8:
        raise checks.fail("bits", "of dtype uint8", f"dtype {bits.dtype}")
    size = math.prod(shape)
    if bits.size != -(-size // 8):
        raise checks.fail("bits", f"{-(-size // 8)} bytes for shape {shape}", f"{bits.size} bytes")
    return jnp.unpackbits(bits, count=size).reshape(shape).astype(bool)


def _checked_keep(keep: ArrayLike) -> ArrayLike:
    """Return `keep` in its original precision; refuse values outside (0, 1]."""
    if isinstance(keep, jax.Array):
        keep = checks.array("keep", keep, ndim=0)
    value = np.asarray(keep)[()] if isinstance(keep, jax.Array) else keep
    checks.number("keep", value, low=0, high=1, open_low=True)
    return value


@functools.partial(jax.jit, static_argnums=2)
def _largest(leaves: list[Array], count: Array, magnitude: bool) -> list[Array]:
    """Return masks that keep the `count` largest entries among all entries of `leaves`."""
    common = jnp.result_type(*leaves)  # bits are compared, so all leaves need one dtype
    keys = [_order(leaf.astype(common), magnitude) for leaf in leaves]
    dtype = keys[0].dtype
    size = sum(key.size for key in keys)

    def total(entries: list[Array]) -> Array:
        return sum((_count(entry) for entry in entries), jnp.uint32(0))

    # The threshold's bits are set from the highest to the lowest. A bit is set if at least `count`
    # entries still reach the threshold. The loop stops once exactly `count` entries reach it.
    def refine(state):
        bit, threshold, reached = state
        candidate = threshold | (jnp.ones((), dtype) << bit.astype(dtype))
        above = total([key >= candidate for key in keys])
        enough = above >= count
        return (
            bit - 1,
            jnp.where(enough, candidate, threshold),
            jnp.where(enough, above, reached),
        )

    top_bit = jnp.iinfo(dtype).bits - (2 if magnitude else 1)
    start = (jnp.int32(top_bit), jnp.zeros((), dtype), jnp.uint32(size))
    _, threshold, reached = jax.lax.while_loop(
        lambda state: (state[0] >= 0) & (state[2] != count), refine, start
    )

    # If more than `count` entries reach the threshold, several entries equal it. A bisection finds
    # the position up to which equal entries are kept.
    positions = _positions(leaves)
    num_tied = count - total([key > threshold for key in keys])

    def narrow(state):
        bit, bound = state
        candidate = bound | (jnp.uint32(1) << bit.astype(jnp.uint32))
        tied = total(
            [
                (key == threshold) & (position < candidate)
                for key, position in zip(keys, positions, strict=True)
            ]
        )
        return bit - 1, jnp.where(tied <= num_tied, candidate, bound)

    settled = reached == count
    first = (
        jnp.where(settled, -1, size.bit_length()).astype(jnp.int32),
        jnp.where(settled, jnp.uint32(2**32 - 1), jnp.uint32(0)),
    )
    _, bound = jax.lax.while_loop(lambda state: state[0] >= 0, narrow, first)
    return [
        (key > threshold) | ((key == threshold) & (position < bound))
        for key, position in zip(keys, positions, strict=True)
    ]


def _count(entries: Array) -> Array:
    """Return the exact number of True entries as uint32.

    Each row is summed first, in float32 if the sum is exact in float32. XLA compiles sums of rows
    to vector instructions, which on a CPU are 3.5 times faster than one sum of integers.
    """
    exact = entries.shape[-1] < 2**24
    rows = jnp.sum(entries, axis=-1, dtype=jnp.float32 if exact else jnp.uint32)
    return jnp.sum(rows.astype(jnp.uint32), dtype=jnp.uint32)


def _order(scores: Array, magnitude: bool) -> Array:
    """Map scores to unsigned integers in the order of |score| (of score if not `magnitude`)."""
    info = jnp.finfo(scores.dtype)
    bits = jax.lax.bitcast_convert_type(scores, jnp.dtype(f"uint{info.bits}"))
    sign = jnp.asarray(1 << (info.bits - 1), bits.dtype)
    size = bits & ~sign
    if magnitude:
        return size
    # Negative scores map to integers below the middle, so that +0 and -0 are equal. A NaN of either
    # sign ranks first.
    is_nan = size > jax.lax.bitcast_convert_type(jnp.asarray(jnp.inf, scores.dtype), bits.dtype)
    return jnp.where((bits >= sign) & ~is_nan, sign - size, sign + size)


def _positions(leaves: list[Array]) -> list[Array]:
    """Return each entry's position in the concatenation of `leaves`, without reshaping leaves."""
    positions, offset = [], 0
    for leaf in leaves:
        position = jnp.full(leaf.shape, offset, jnp.uint32)
        for axis in range(leaf.ndim):
            stride = math.prod(leaf.shape[axis + 1 :])
            index = jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
            position = position + index * np.uint32(stride)
        positions.append(position)
        offset += leaf.size
    return positions
