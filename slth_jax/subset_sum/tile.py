"""One tile of subset sums: in fixed point where all subsets are tried, settled beyond that.

Every number that decides something is an integer, a sum with its rounding kept, or scaled by a
power of two only: neither the order of a reduction nor fused multiply-adds can change a bit.
Inside, the batch is the last axis.
"""

import jax.numpy as jnp
from jax import lax

from slth_jax.subset_sum import meet_in_the_middle
from slth_jax.types import Array


def solve_tile(samples: Array, value: Array, max_exact: int) -> tuple[Array, Array, Array, Array]:
    """Return mask `[b, n]`, total, error, optimal `[b]` of `samples[b, n]` and `value[b]`."""
    n = samples.shape[1]
    samples = jnp.where(jnp.abs(samples) < jnp.finfo(samples.dtype).tiny, 0, samples)
    if n <= max_exact:
        even = max(2, n + n % 2)
        columns = jnp.pad(samples, ((0, 0), (0, even - n))).T
        mask = _enumerate(columns, value, jnp.zeros_like(value))[:n]
    else:
        mask = _reach_and_resolve(samples, value, max_exact + max_exact % 2)
    columns = samples.T
    most, least = _total(jnp.maximum(columns, 0)), _total(jnp.minimum(columns, 0))
    above, below = value >= most, value <= least
    mask = jnp.where(above[None], columns > 0, mask)
    mask = jnp.where((below & ~above)[None], columns < 0, mask)
    total = _total(jnp.where(mask, columns, 0))
    error = jnp.abs(value - total)
    floor = jnp.maximum(jnp.abs(value), jnp.max(jnp.abs(columns), axis=0))
    optimal = above | below | (error <= jnp.finfo(value.dtype).eps * floor)
    optimal |= jnp.sum(columns != 0, axis=0, dtype=jnp.int32) <= max_exact
    return mask.T, total, error, optimal


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """Return `a + b` rounded and what the rounding lost (Knuth)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def _total(x: Array) -> Array:
    """Return the sum over the first axis of `x[n, b]`, rounded nearly once.

    Neighbours are added pairwise, so zeros at the end change nothing.
    """
    low = jnp.zeros_like(x)
    while x.shape[0] > 1:
        if x.shape[0] % 2:
            x, low = (jnp.pad(part, ((0, 1), (0, 0))) for part in (x, low))
        x, lost = _two_sum(x[0::2], x[1::2])
        low = low[0::2] + low[1::2] + lost
    return x[0] + low[0]


def _power_of_two(exponent: Array, dtype: jnp.dtype) -> Array:
    """Return 2^exponent for exponents of normal numbers."""
    info = jnp.finfo(dtype)
    integer = jnp.int32 if info.bits == 32 else jnp.int64
    bits = (exponent.astype(integer) - info.minexp + 1) << info.nmant
    return lax.bitcast_convert_type(bits, dtype)


def _exponent(x: Array) -> Array:
    """Return floor(log2 x) of positive normal numbers; of zero, something less."""
    info = jnp.finfo(x.dtype)
    integer = jnp.int32 if info.bits == 32 else jnp.int64
    bits = lax.bitcast_convert_type(x, integer)
    return (bits >> info.nmant).astype(jnp.int32) + (info.minexp - 1)


def _enumerate(samples: Array, value: Array, value_low: Array) -> Array:
    """Return the mask of the closest subset of `samples[n, b]` to `value[b] + value_low[b]`.

    In fixed point: the unit is a power of two so small that `sum |samples|` takes 30 of an
    int32's bits (62 of an int64's). Then all sums are exact; only the samples are rounded.
    """
    dtype = samples.dtype
    integer, room = (jnp.int32, 30) if dtype == jnp.float32 else (jnp.int64, 62)
    size = jnp.abs(samples)
    exponent = _exponent(jnp.max(size, axis=0))

    def scaled(x: Array, by: Array) -> Array:
        # In two factors: one alone may be out of the float's range.
        by = by[None] if x.ndim == 2 else by
        half = by >> 1
        return x * _power_of_two(half, dtype) * _power_of_two(by - half, dtype)

    # Each size rounded up to 20 bits: a bound of the sum that no order of adding can change.
    rounded_up = jnp.ceil(scaled(size, 19 - exponent)).astype(jnp.int32)
    bound = jnp.sum(rounded_up, axis=0, dtype=jnp.int32)
    bits = 32 - lax.clz(bound + 1)
    shift = 19 - exponent - bits + room
    q = jnp.round(scaled(samples, shift)).astype(integer)
    limit = jnp.asarray(2.0**room, dtype)
    target = sum(
        jnp.round(jnp.clip(scaled(part, shift), -limit, limit)).astype(integer)
        for part in (value, value_low)
    )
    least = jnp.sum(jnp.minimum(q, 0), axis=0, dtype=integer)
    most = jnp.sum(jnp.maximum(q, 0), axis=0, dtype=integer)
    return meet_in_the_middle.closest_subset(q, jnp.clip(target, least, most)) & (samples != 0)


def _reach_and_resolve(samples: Array, value: Array, m: int) -> Array:
    """Settle all but `m` of `samples[b, n]` greedily, the rest exactly; return `mask[n, b]`."""
    n = samples.shape[1]
    info = jnp.finfo(samples.dtype)
    integer = jnp.int32 if info.bits == 32 else jnp.int64
    # Sort by magnitude (19 leading bits), then index (12 bits), zeros last.
    bits = lax.bitcast_convert_type(jnp.abs(samples), integer) >> (info.bits - 20)
    bits = jnp.where(samples == 0, 2**19 - 1, bits.astype(jnp.int32))
    keys = jnp.sort((bits << 12) | jnp.arange(n, dtype=jnp.int32)[None], axis=1)
    order = keys & (2**12 - 1)
    count = jnp.sum(samples != 0, axis=1, dtype=jnp.int32)[:, None]
    j = jnp.arange(m, dtype=jnp.int32)[None]
    rank = j + (jnp.maximum(count * 3 // 4 - m, 0) * (j * j)) // (m * m)
    chosen = jnp.sort(jnp.take_along_axis(order, rank, axis=1), axis=1)
    free = jnp.put_along_axis(jnp.zeros(samples.shape, bool), rank, True, axis=1, inplace=False)
    part = jnp.take_along_axis(samples, chosen, axis=1).T
    centre = 0.5 * _total(part)
    by_size = jnp.take_along_axis(samples, order, axis=1).T[::-1]
    blocked = free.T[::-1]

    def settle(rest, now):
        (high, low), (sample, blocked) = rest, now
        # Row 0: the distance from the middle of what the samples to come can reach. Row 1: the
        # distance from the value.
        step = jnp.stack([0.5 * sample, sample])
        gain = jnp.abs(high - step) < jnp.abs(high)
        keep = jnp.stack([jnp.where(sample > 0, high[0] > 0, high[0] < 0), gain[1]])
        step = jnp.where(keep, step, jnp.stack([-step[0], jnp.zeros_like(sample)]))
        step = jnp.where(jnp.stack([blocked, jnp.zeros_like(blocked)]), 0, step)
        new, lost = _two_sum(high, -step)
        new, low = _two_sum(new, low + lost)
        return (new, low), keep & ~jnp.stack([blocked | (sample == 0), jnp.zeros_like(blocked)])

    middle = _two_sum(value, -0.5 * _total(samples.T))
    start = jnp.stack([middle[0], value]), jnp.stack([middle[1], jnp.zeros_like(value)])
    (high, low), keep = lax.scan(settle, start, (by_size, blocked))

    def to_samples(keep, order):
        mask = jnp.zeros(samples.shape, bool)
        return jnp.put_along_axis(mask, order, keep.T, axis=1, inplace=False).T

    target, lost = _two_sum(high[0], centre)
    exact = _enumerate(part, *_two_sum(target, low[0] + lost))
    settled = to_samples(keep[::-1, 0], order) | to_samples(exact, chosen)
    greedy = to_samples(keep[::-1, 1], order)
    error = [jnp.abs(value - _total(jnp.where(mask, samples.T, 0))) for mask in (settled, greedy)]
    # Where all were enumerated, that stands, as it does without the zeros that are here besides.
    settled_is_better = (error[0] <= error[1]) | (count[:, 0] <= m)
    return jnp.where(settled_is_better[None], settled, greedy)
