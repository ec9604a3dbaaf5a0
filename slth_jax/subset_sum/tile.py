"""Solve a tile (a part of a batch) of subset sums by trying all subsets in fixed point.

If there are too many samples to try all subsets, the largest samples are first decided greedily.
Every number on which a decision depends is an integer, or a sum stored with its rounding error, or
a number scaled by a power of two. Neither the order of a reduction nor fused multiply-adds can
therefore change a bit of the result. In this module the batch is the last axis, and no operation
mixes two instances.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Num

from slth_jax.subset_sum import meet_in_the_middle


class TileSolution(NamedTuple):
    """The closest subset for every instance of a tile."""

    mask: Bool[Array, "b n"]
    total: Float[Array, "b"]
    error: Float[Array, "b"]
    optimal: Bool[Array, "b"]


def solve_tile(
    samples: Float[Array, "b n"],
    value: Float[Array, "b"],
    max_exact: int,
    running: Bool[Array, ""] | None = None,
) -> TileSolution:
    """Return the subsets of `samples` whose sums are closest to `value`.

    `running` is None or a boolean that is always true. If `running` is given, XLA compiles the
    merges of sorted lists separately from the surrounding operations.
    """
    n = samples.shape[1]
    samples = jnp.where(jnp.abs(samples) < jnp.finfo(samples.dtype).tiny, 0, samples)
    if n <= max_exact:
        even = max(2, n + n % 2)
        columns = jnp.pad(samples, ((0, 0), (0, even - n))).T  # [even, b]
        mask = _enumerate(columns, value, jnp.zeros_like(value), running)[:n]  # [n, b]
    else:
        mask = _reach_and_resolve(samples, value, max_exact + max_exact % 2, running)
    columns = samples.T  # [n, b]
    most, least = _total(jnp.maximum(columns, 0)), _total(jnp.minimum(columns, 0))  # [b]
    above, below = value >= most, value <= least
    mask = jnp.where(above[None], columns > 0, mask)
    mask = jnp.where((below & ~above)[None], columns < 0, mask)
    chex.assert_equal_shape([mask, columns])
    total = _total(jnp.where(mask, columns, 0))
    error = jnp.abs(value - total)
    largest = jnp.maximum(jnp.abs(value), jnp.max(jnp.abs(columns), axis=0))
    optimal = above | below | (error <= jnp.finfo(value.dtype).eps * largest)
    optimal |= jnp.sum(columns != 0, axis=0, dtype=jnp.int32) <= max_exact
    return TileSolution(mask.T, total, error, optimal)


def _two_sum(
    a: Float[Array, "..."], b: Float[Array, "..."]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Return the rounded sum `a + b` and its rounding error (Knuth)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def _total(x: Float[Array, "n b"]) -> Float[Array, "b"]:
    """Return the sum over the first axis; its error is close to that of a single rounding.

    Neighbouring entries are added pairwise, so zeros at the end change nothing.
    """
    low = jnp.zeros_like(x)
    while x.shape[0] > 1:
        if x.shape[0] % 2:
            x, low = (jnp.pad(part, ((0, 1), (0, 0))) for part in (x, low))
        x, lost = _two_sum(x[0::2], x[1::2])
        low = low[0::2] + low[1::2] + lost
    return x[0] + low[0]


def _power_of_two(exponent: Int[Array, "..."], dtype: jnp.dtype) -> Float[Array, "..."]:
    """Return 2^exponent, for exponents of normal floating-point numbers."""
    info = jnp.finfo(dtype)
    integer = jnp.int32 if info.bits == 32 else jnp.int64
    bits = (exponent.astype(integer) - info.minexp + 1) << info.nmant
    return lax.bitcast_convert_type(bits, dtype)


def _exponent(x: Float[Array, "..."]) -> Int[Array, "..."]:
    """Return floor(log2 x) for positive normal x; for zero, less than any such exponent."""
    info = jnp.finfo(x.dtype)
    integer = jnp.int32 if info.bits == 32 else jnp.int64
    bits = lax.bitcast_convert_type(x, integer)
    return (bits >> info.nmant).astype(jnp.int32) + (info.minexp - 1)


def _enumerate(
    samples: Float[Array, "n b"],
    value: Float[Array, "b"],
    value_low: Float[Array, "b"],
    running: Bool[Array, ""] | None,
) -> Bool[Array, "n b"]:
    """Try all subsets; return the mask of the one whose sum is closest to `value + value_low`.

    Sums are computed in fixed point. The unit of the fixed-point numbers is a power of two such
    that `sum |samples|` takes 30 bits of an int32 (62 bits of an int64). All sums of fixed-point
    numbers are exact, so only the samples are rounded.
    """
    dtype = samples.dtype
    integer, width = (jnp.int32, 30) if dtype == jnp.float32 else (jnp.int64, 62)
    size = jnp.abs(samples)
    exponent = _exponent(jnp.max(size, axis=0))  # [b]

    def scaled(x: Array, by: Array) -> Array:
        # The power is applied as two factors, because a single factor may be out of the float's
        # range.
        by = by[None] if x.ndim == 2 else by
        half = by >> 1
        return x * _power_of_two(half, dtype) * _power_of_two(by - half, dtype)

    # Magnitudes are rounded up to 20 bits, so that the bound on their sum does not depend on the
    # order of addition.
    rounded_up = jnp.ceil(scaled(size, 19 - exponent)).astype(jnp.int32)  # [n, b]
    bound = jnp.sum(rounded_up, axis=0, dtype=jnp.int32)  # [b]
    bits = 32 - lax.clz(bound + 1)
    shift = 19 - exponent - bits + width
    q = jnp.round(scaled(samples, shift)).astype(integer)  # [n, b]
    limit = jnp.asarray(2.0**width, dtype)
    target = sum(
        jnp.round(jnp.clip(scaled(part, shift), -limit, limit)).astype(integer)
        for part in (value, value_low)
    )  # [b]
    least = jnp.sum(jnp.minimum(q, 0), axis=0, dtype=integer)
    most = jnp.sum(jnp.maximum(q, 0), axis=0, dtype=integer)
    chex.assert_shape([target, least, most], value.shape)
    target = jnp.clip(target, least, most)
    return meet_in_the_middle.closest_subset(q, target, running) & (samples != 0)


def _scattered(index: Int[Array, "b k"], x: Bool[Array, "b k"], n: int) -> Bool[Array, "b n"]:
    """Return `y` with `y[i, index[i, j]] = x[i, j]`, and False elsewhere.

    `vmap` is used so that XLA's partitioner can see that no instance writes into another.
    """
    return jax.vmap(lambda index, x: jnp.zeros(n, bool).at[index].set(x))(index, x)


def _reach_and_resolve(
    samples: Float[Array, "b n"],
    value: Float[Array, "b"],
    m: int,
    running: Bool[Array, ""] | None,
) -> Bool[Array, "n b"]:
    """Decide all but `m` samples greedily, then solve the `m` samples exactly; return the masks."""
    batch, n = samples.shape
    order, count = _by_size(samples)  # [b, n], [b]
    # The ranks of the m samples that are set aside. They lie in the smaller three quarters of the
    # nonzero samples, and are densest among the smallest.
    j = jnp.arange(m, dtype=jnp.int32)[None]  # [1, m]
    rank = j + (jnp.maximum(count[:, None] * 3 // 4 - m, 0) * (j * j)) // (m * m)  # [b, m]
    chosen = jnp.sort(jnp.take_along_axis(order, rank, axis=1), axis=1)  # [b, m]
    free = _scattered(rank, jnp.ones(rank.shape, bool), n)  # [b, n], by rank
    part = jnp.take_along_axis(samples, chosen, axis=1).T  # [m, b]
    chex.assert_shape(part, (m, batch))
    centre = 0.5 * _total(part)  # [b]

    # Samples are decided from the largest down, so the ranks are reversed.
    by_size = jnp.take_along_axis(samples, order, axis=1).T[::-1]  # [n, b]
    middle = _two_sum(value, -0.5 * _total(samples.T))  # [b], [b]
    start = jnp.stack([middle[0], value]), jnp.stack([middle[1], jnp.zeros_like(value)])  # [2, b]
    (high, low), keep = lax.scan(_settle, start, (by_size, free.T[::-1]))  # [2, b], [n, 2, b]
    chex.assert_shape(keep, (n, 2, batch))

    target, lost = _two_sum(high[0], centre)
    exact = _enumerate(part, *_two_sum(target, low[0] + lost), running)  # [m, b]
    settled = _scattered(order, keep[::-1, 0].T, n) | _scattered(chosen, exact.T, n)  # [b, n]
    greedy = _scattered(order, keep[::-1, 1].T, n)  # [b, n]
    masks = settled.T, greedy.T  # [n, b]
    error = [jnp.abs(value - _total(jnp.where(mask, samples.T, 0))) for mask in masks]  # [b]
    # If all nonzero samples were enumerated, the enumerated solution is taken, as without zeros.
    settled_is_better = (error[0] <= error[1]) | (count <= m)
    return jnp.where(settled_is_better[None], *masks)


def _by_size(samples: Float[Array, "b n"]) -> tuple[Int[Array, "b n"], Int[Array, "b"]]:
    """Return the order of samples by rising magnitude, and the number of nonzero samples.

    Samples are compared by the 19 leading bits of their magnitudes, then by index. Zeros come last
    in the order.
    """
    info = jnp.finfo(samples.dtype)
    integer = jnp.int32 if info.bits == 32 else jnp.int64
    bits = lax.bitcast_convert_type(jnp.abs(samples), integer) >> (info.bits - 20)
    bits = jnp.where(samples == 0, 2**19 - 1, bits.astype(jnp.int32))
    # The sort key has 19 bits of the magnitude and 12 bits of the index (MAX_SAMPLES is 2^12).
    keys = (bits << 12) | jnp.arange(samples.shape[1], dtype=jnp.int32)[None]
    order = jnp.sort(keys, axis=1) & (2**12 - 1)
    return order, jnp.sum(samples != 0, axis=1, dtype=jnp.int32)


def _settle(
    rest: tuple[Float[Array, "2 b"], Float[Array, "2 b"]],
    now: tuple[Float[Array, "b"], Bool[Array, "b"]],
) -> tuple[tuple[Num[Array, "2 b"], Num[Array, "2 b"]], Bool[Array, "2 b"]]:
    """Keep or drop one sample per instance by two strategies; return new state and decisions.

    The strategy in row 0 of the arrays brings the value closer to the middle of the range that
    later samples can reach. This strategy skips the samples that are set aside (`free`). The
    strategy in row 1 brings the sum closer to the value, and decides all samples.
    """
    (high, low), (sample, free) = rest, now
    step = jnp.stack([0.5 * sample, sample])  # [2, b]
    gain = jnp.abs(high - step) < jnp.abs(high)  # [2, b]
    keep = jnp.stack([jnp.where(sample > 0, high[0] > 0, high[0] < 0), gain[1]])  # [2, b]
    step = jnp.where(keep, step, jnp.stack([-step[0], jnp.zeros_like(sample)]))
    skipped = jnp.stack([free, jnp.zeros_like(free)])
    step = jnp.where(skipped, 0, step)
    new, lost = _two_sum(high, -step)
    new, low = _two_sum(new, low + lost)
    never = jnp.stack([free | (sample == 0), jnp.zeros_like(free)])
    return (new, low), keep & ~never
