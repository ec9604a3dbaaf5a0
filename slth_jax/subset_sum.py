"""Random subset sums: the closest subset, exactly, for millions of small instances at once."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from slth_jax import _meet_in_the_middle, checks
from slth_jax.types import Array, ArrayLike

MAX_SAMPLES = 4096


class Solution(NamedTuple):
    """What `solve` found: `mask` bool[..., n]; `total`, `error`, `optimal` of shape [...]."""

    mask: Array
    total: Array
    error: Array
    optimal: Array


def solve(samples: ArrayLike, value: ArrayLike, *, max_exact: int = 24) -> Solution:
    """Return the subset of `samples` whose sum is closest to `value`, for every instance.

    `mask` minimises `|value - sum_i mask_i samples_i|` over {0, 1}^n, by meeting in the middle
    (Horowitz and Sahni 1974) in time O(2^(n/2) n). Beyond `max_exact` samples all but that many,
    spread over the smaller three quarters, are settled from the largest down, each kept or not so
    that the value stays nearest to the middle of what the others can still reach; those set aside
    are then solved exactly. The result is never worse than keeping, from the largest down, each
    sample that brings the sum closer.

    Zeros are never kept, and zeros appended to the last axis change no bit of the rest of the
    result; nor do the batch, the place in it, `jit`, `vmap` or sharding. Subnormal numbers are
    zeros here, as they are to most accelerators. Nothing is differentiated through.

    Args:
      samples: float32 or float64 of shape [..., n], n up to 4,096.
      value: the number to hit, of the leading shape [...].
      max_exact: up to so many samples (not counting zeros) the optimum is guaranteed; the time
        doubles with every second sample. From 2 to 30.

    Returns:
      `mask`; `total`, the sum of the kept samples, rounded once; `error = |value - total|`;
      `optimal`, true where no subset is closer up to rounding, because all were looked at
      (at most `max_exact` samples are not zero), or `value` lies at or beyond the sum of all
      positive or all negative samples, or `error` is at most the rounding unit `eps` times the
      largest of `|value|` and `|samples|`. "All were looked at" is exact for samples rounded to
      multiples of `2^-29 sum |samples|` (`2^-61` in float64), so that the error is at most
      `n 2^-29 sum |samples|` above the least possible.

    Raises:
      ValueError: shapes that do not fit, more than 4,096 samples, NaN or infinite numbers
        (where they are known: not under a transformation), dtypes other than the two.
    """
    max_exact = checks.integer("max_exact", max_exact, low=2, high=30)
    samples = _float_array("samples", samples, min_ndim=1)
    value = _float_array("value", value, shape=samples.shape[:-1])
    if samples.shape[-1] > MAX_SAMPLES:
        raise checks.fail(
            "samples", f"at most {MAX_SAMPLES} numbers an instance", f"shape {samples.shape}"
        )
    dtype = jnp.promote_types(samples.dtype, value.dtype)
    return _solve(samples.astype(dtype), value.astype(dtype), max_exact=max_exact)


def _float_array(name: str, array: ArrayLike, **allowed) -> Array:
    if not isinstance(array, jax.Array):
        # Here, and not in JAX, since a float64 may become infinite where JAX keeps float32.
        array = np.asarray(array)
        with np.errstate(over="ignore"):
            array = array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)
    if jnp.issubdtype(array.dtype, jnp.floating) and array.dtype.itemsize < 4:
        raise checks.fail(name, "of dtype float32 or float64", f"dtype {array.dtype}")
    return checks.array(name, array, **allowed)


@functools.partial(jax.jit, static_argnames="max_exact")
def _solve(samples: Array, value: Array, *, max_exact: int) -> Solution:
    samples, value = lax.optimization_barrier(lax.stop_gradient((samples, value)))
    n = samples.shape[-1]
    flat = _solve_batch(max_exact)(samples.reshape(value.size, n), value.reshape(-1))
    return Solution(
        flat.mask.reshape(samples.shape), *(part.reshape(value.shape) for part in flat[1:])
    )


@functools.cache
def _solve_batch(max_exact: int) -> Callable[[Array, Array], Solution]:
    """Return the solver for `samples[b, n]`, `value[b]`; vmap makes its batch longer."""

    @jax.custom_batching.custom_vmap
    def solve_batch(samples: Array, value: Array) -> Solution:
        return _in_tiles(samples, value, max_exact)

    @solve_batch.def_vmap
    def rule(axis_size, batched, samples, value):
        if not batched[0]:
            samples = jnp.broadcast_to(samples, (axis_size, *samples.shape))
        if not batched[1]:
            value = jnp.broadcast_to(value, (axis_size, *value.shape))
        flat = solve_batch(samples.reshape(-1, samples.shape[-1]), value.reshape(-1))
        solution = jax.tree.map(lambda x: x.reshape(axis_size, -1, *x.shape[1:]), flat)
        return solution, jax.tree.map(lambda _: True, flat)

    return solve_batch


def _in_tiles(samples: Array, value: Array, max_exact: int) -> Solution:
    batch, n = samples.shape
    if batch == 0 or n == 0:
        empty = jnp.zeros_like(value)
        return Solution(samples != 0, empty, jnp.abs(value), jnp.ones(batch, bool))
    tile = 64
    tiles = -(-batch // tile)
    pad = tiles * tile - batch
    samples = jnp.pad(samples, ((0, pad), (0, 0))).reshape(tiles, tile, n)
    value = jnp.pad(value, (0, pad)).reshape(tiles, tile)
    solution = lax.map(lambda args: _solve_tile(args[0], args[1], max_exact), (samples, value))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:batch], solution)


def _solve_tile(samples: Array, value: Array, max_exact: int) -> Solution:
    """Solve `samples[b, n]`, `value[b]`; inside, the batch is the last axis."""
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
    optimal |= jnp.sum(columns != 0, axis=0) <= max_exact
    return Solution(mask.T, total, error, optimal)


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
    least, most = jnp.sum(jnp.minimum(q, 0), axis=0), jnp.sum(jnp.maximum(q, 0), axis=0)
    return _meet_in_the_middle.closest_subset(q, jnp.clip(target, least, most)) & (samples != 0)


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
