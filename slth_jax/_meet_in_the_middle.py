"""Exact subset sums of a few integers, many instances at once, without a sort and without a gather.

Horowitz and Sahni (1974) split the numbers into two halves, list the 2^(n/2) sums of each half in
order, and find the closest pair. Here every step is an elementwise operation on arrays whose last
axis is the batch:

- The sums of a half come in complementary pairs `x, total - x`, so only the lower half of the list
  is kept. Adding the number `q` maps the sorted lower half `x` to `x` and `min(total - x, q + x)`;
  the first rises, the second reversed falls or rises and falls, and together they are bitonic:
  a few passes of minimum and maximum (Batcher 1968) sort them.
- `A`, rising, against `value - B`, falling, is bitonic as well. Sums are even, `value` is made
  odd, so the lowest bit says which list a sorted entry came from, and the closest pair stands side
  by side.
- The numbers are integers, hence every sum is exact in whatever order it is made, and the subset
  behind a sum is found afterwards by looking for it in the table of sums.
"""

import jax.numpy as jnp

from slth_jax.types import Array


def _sort_bitonic(x: Array) -> Array:
    """Sort the columns of a bitonic `x[2^k, b]`: log2 passes of minimum and maximum."""
    length, batch = x.shape
    stride = length // 2
    while stride:
        pairs = x.reshape(length // (2 * stride), 2, stride * batch)
        low = jnp.minimum(pairs[:, 0], pairs[:, 1])
        high = jnp.maximum(pairs[:, 0], pairs[:, 1])
        x = jnp.stack([low, high], axis=1).reshape(length, batch)
        stride //= 2
    return x


def _sorted_sums(q: Array) -> Array:
    """Return all sums of the nonnegative `q[h, b]` in rising order, `[2^h, b]`."""
    lower, total = jnp.zeros_like(q[:1]), q[:1]
    for new in (q[k : k + 1] for k in range(1, q.shape[0])):
        lower = _sort_bitonic(
            jnp.concatenate([lower, jnp.minimum(total - lower, new + lower)[::-1]])
        )
        total = total + new
    return jnp.concatenate([lower, total - lower[::-1]])


def _sums(q: Array) -> Array:
    """Return the sums of `q[h, b]` by subset, `[2^h, b]`: bit k of the row number is row k of q."""
    sums = jnp.zeros_like(q, shape=(1, q.shape[1]))
    for new in (q[k : k + 1] for k in range(q.shape[0])):
        sums = jnp.concatenate([sums, sums + new])
    return sums


def _find_subset(q: Array, target: Array) -> Array:
    """Return the mask `[h, b]` of the subset of `q[h, b]` that sums to `target[b]` exactly.

    Of several such subsets it is the one whose bits, read as a number, are least; so a zero is
    never kept.
    """
    h = q.shape[0]
    low, high = _sums(q[: h // 2]), _sums(q[h // 2 :])
    number = jnp.arange(2**h, dtype=jnp.int32).reshape(high.shape[0], low.shape[0], 1)
    hit = high[:, None] + low[None] == target[None, None]
    number = jnp.min(jnp.where(hit, number, 2**h), axis=(0, 1))
    return (number[None] >> jnp.arange(h, dtype=jnp.int32)[:, None]) & 1 == 1


def closest_subset(q: Array, value: Array) -> Array:
    """Return the mask `[n, b]` of the subset of `q[n, b]` whose sum is closest to `value[b]`.

    Among equally close subsets the choice depends only on the numbers that are not zero and on
    their order: zeros at the end of `q` change nothing, and a zero is never kept.

    Args:
      q: signed integers, n even and at least 2, `sum |q| < 2^30` (int32) or `2^62` (int64).
      value: integers between the sum of the negative and the sum of the positive `q`.
    """
    size = jnp.abs(q) * 2
    below = jnp.sum(jnp.maximum(-q, 0), axis=0) * 2
    below_a = jnp.sum(jnp.maximum(-q[0::2], 0), axis=0) * 2
    # With |q| for q the sums start at zero: a negative number left out is then one added.
    target = value * 2 + 1 + below
    rising = _sorted_sums(size[0::2])
    falling = target[None] - _sorted_sums(size[1::2])
    merged = jnp.concatenate(
        [
            _sort_bitonic(jnp.minimum(rising, falling)),
            _sort_bitonic(jnp.maximum(rising, falling)),
        ]
    )
    # Neighbours from different lists differ by an odd number; make that twice their distance.
    here, there = merged[:-1], merged[1:]
    largest = jnp.iinfo(q.dtype).max
    gap = there - here
    gap = jnp.where(gap & 1 == 1, gap - 1 + 2 * (here & 1), largest)
    best = jnp.min(gap, axis=0)
    # The least sum of A at that distance; its free low bit tells that the partner stands before it.
    pair = jnp.where(here & 1 == 0, here, there + 1)
    pair = jnp.min(jnp.where(gap == best[None], pair, largest), axis=0)
    partner_before = pair & 1
    sum_a = pair - partner_before
    sum_b = target - 1 - sum_a - jnp.where(partner_before == 1, -best, best)
    mask_a = _find_subset(q[0::2], (sum_a - below_a) >> 1)
    mask_b = _find_subset(q[1::2], (sum_b - (below - below_a)) >> 1)
    return jnp.stack([mask_a, mask_b], axis=1).reshape(q.shape)
