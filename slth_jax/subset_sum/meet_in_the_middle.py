"""Solve subset sums of a few integers exactly, for many instances at once, without `sort`.

Horowitz and Sahni (1974) split the numbers into two halves and list the 2^(n/2) subset sums of each
half in order. The algorithm then finds the pair of a sum of each half that adds up closest to the
value. In this module every step is an elementwise operation on arrays whose last axis is the batch:

- The subset sums of a half come in complementary pairs `x, total - x`, so only the smaller sum `x`
  of each pair is stored. If one more number `q` is included, the sorted list `x` becomes two lists,
  `x` and `min(total - x, q + x)`. The list `x` rises; the other list, reversed, rises and then
  falls. The two lists together are bitonic and are sorted by a few passes of minimum and maximum
  (Batcher 1968).
- The sums `A` of one half in rising order, followed by `value - B` in falling order (`B` are the
  sums of the other half), are bitonic as well. All sums are even and `value` is made odd, so the
  lowest bit of a sorted entry shows from which list it comes. In the sorted list the closest pair
  of sums is adjacent.
- The numbers are integers, so every sum is exact in whatever order it is computed. The subset that
  gives a sum is found afterwards by comparing the sum with all pairs of partial sums.

On a CPU, where XLA compiles each pass to one loop nest, the following measures made the search
fast. A pass has two merge stages, which halves the memory traffic; three stages gained nothing.
Every pass ends in a concatenation, because XLA would recompute a bare minimum inside its consumers.
Reductions are written as passes over eight slices, because XLA does not vectorise a reduction of a
computed array. A tile has at least 64 instances, because shorter inner loops are unrolled before
they are vectorised. A `cond` surrounds the passes, because XLA would otherwise fuse the slicing of
a tile into them, which prevents vectorisation.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int


def closest_subset(
    q: Int[Array, "n b"], value: Int[Array, "b"], running: Array | None = None
) -> Bool[Array, "n b"]:
    """Return the mask `[n, b]` of the subset of `q[n, b]` whose sum is closest to `value[b]`.

    Among equally close subsets the choice depends only on the nonzero numbers and their order.
    Zeros at the end of `q` change nothing, and a zero is never kept.

    Args:
      q: signed integers; n is even and at least 2, and `sum |q|` is below 2^30 (int32) or 2^62
        (int64).
      value: integers between the sum of the negative and the sum of the positive entries of `q`.
    """
    size, below = 2 * jnp.abs(q), 2 * jnp.maximum(-q, 0)
    below_a, below_b = (
        jnp.sum(below[half::2], axis=0, keepdims=True, dtype=q.dtype) for half in (0, 1)
    )
    # With |q| in place of q the sums start at zero. Leaving out a negative number then becomes
    # adding a positive number.
    target = 2 * value[None] + 1 + below_a + below_b
    best, pair = _apart(
        running, _closest_pair, *_with_totals(size[0::2]), *_with_totals(size[1::2]), target
    )
    partner_before = pair & 1
    sum_a = pair - partner_before
    sum_b = target - 1 - sum_a - jnp.where(partner_before == 1, -best, best)
    masks = _apart(
        running,
        lambda a, sum_a, b, sum_b: (_find_subset(a, sum_a), _find_subset(b, sum_b)),
        *(q[0::2], (sum_a - below_a) >> 1, q[1::2], (sum_b - below_b) >> 1),
    )
    return jnp.stack(masks, axis=1).reshape(q.shape) & (value != 0)[None]


def _apart(running: Bool[Array, ""] | None, function: Callable, *operands: Array):
    """Return `function(*operands)`; if `running` is given, XLA compiles this call separately.

    If `running` is None, XLA fuses the surrounding operations, such as slicing a tile, into the
    loops of the function.
    """
    if running is None:
        return function(*operands)
    shapes = jax.eval_shape(function, *operands)
    # Zeros that depend on an operand, so that they vary over the same axes of a mesh as the
    # operand.
    zero = 0 * operands[-1][:1]

    def nothing(*_):
        return jax.tree.map(lambda x: jnp.broadcast_to(zero, x.shape).astype(x.dtype), shapes)

    return lax.cond(running, function, nothing, *operands)


def _with_totals(q: Array) -> tuple[Array, Array]:
    return q, jnp.cumsum(q, axis=0, dtype=q.dtype)


def _closest_pair(a: Array, a_totals: Array, b: Array, b_totals: Array, target: Array):
    """Find the sum of `a` and the sum of `b` that together come closest to `target - 1`.

    Return the distance `[1, b]` between `target - 1` and the closest pair of sums, and the pair's
    sum of `a`. If several pairs are equally close, the pair with the smallest sum of `a` is taken.
    All sums are even, so the lowest bit of the returned sum serves as a flag. The flag is set if
    the partner `target - 1
    - (sum of b)` is less than the sum of `a`.
    """
    low_a, low_b = _lower_sums(a, a_totals), _lower_sums(b, b_totals)
    # Rising: low_a, high_a. Falling: target - low_b, target - high_b.
    high_a = a_totals[-1:] - low_a[::-1]
    first = _stage([low_a, target - low_b])
    second = _stage([high_a, target - b_totals[-1:] + low_b[::-1]])
    merged = _sort_bitonic(jnp.concatenate([first[0], second[0], first[1], second[1]]), 2)
    largest = jnp.iinfo(merged.dtype).max

    def gap(start: int, rows: int) -> Array:
        # Neighbours from different lists differ by an odd number, which is taken as their distance.
        lower, upper = merged[start : start + rows], merged[start + 1 : start + 1 + rows]
        difference = upper - lower
        return jnp.where(difference & 1 == 1, difference - 1 + 2 * (lower & 1), largest)

    best = _least(gap, merged.shape[0] - 1)

    def sum_at_best(start: int, rows: int) -> Array:
        lower, upper = merged[start : start + rows], merged[start + 1 : start + 1 + rows]
        tagged = jnp.where(lower & 1 == 0, lower, upper + 1)
        return jnp.where(gap(start, rows) == best, tagged, largest)

    return best, _least(sum_at_best, merged.shape[0] - 1)


def _lower_sums(q: Array, totals: Array) -> Array:
    """Return the smaller half of all subset sums of the nonnegative `q[h, b]`, in rising order."""
    lower = jnp.zeros_like(q[:1])
    for k in range(1, q.shape[0]):
        added = jnp.minimum(totals[k - 1 : k] - lower, q[k : k + 1] + lower)
        lower = _sort_bitonic(jnp.concatenate(_stage([lower, added[::-1]])), 2)
    return lower


def _stage(rows: Sequence[Array]) -> list[Array]:
    """Sort a bitonic sequence of 2^k arrays elementwise, in rising order."""
    rows, stride = list(rows), len(rows) // 2
    while stride:
        for i in range(len(rows)):
            if not i & stride:
                low, high = rows[i], rows[i + stride]
                rows[i], rows[i + stride] = jnp.minimum(low, high), jnp.maximum(low, high)
        stride //= 2
    return rows


def _sort_bitonic(x: Array, groups: int) -> Array:
    """Sort each column of `x[2^k, b]`; its `groups` equal parts are bitonic and in rising order."""
    length, batch = x.shape
    while groups < length:
        stages = (length // groups).bit_length() - 1
        parts = 2 if stages % 2 else 4
        y = x.reshape(groups, parts, length // (groups * parts), batch)
        y = jnp.stack(_stage([y[:, part] for part in range(parts)]), axis=1)
        x = y.reshape(length, batch)
        groups *= parts
    return x


def _least(chunk: Callable[[int, int], Array], length: int) -> Array:
    """Return the minimum `[1, b]` over `length` rows; `chunk(start, rows)` computes the rows."""
    least = functools.partial(functools.reduce, jnp.minimum)
    # The chunks may overlap, because often one row is missing for 16 equal chunks.
    rows = (length + 1) // 16
    if not rows:
        return jnp.min(chunk(0, length), axis=0, keepdims=True)
    starts = [min(i * rows, length - rows) for i in range(16)]
    x = jnp.concatenate([least([chunk(start, rows) for start in starts[i::2]]) for i in (0, 1)])
    while x.shape[0] > 16:
        y = x.reshape(2, 8, x.shape[0] // 16, x.shape[1])
        x = jnp.concatenate([least([y[i, j] for j in range(8)]) for i in (0, 1)])
    return jnp.min(x, axis=0, keepdims=True)


def _sums(q: Array) -> Array:
    """Return the sums `[2^h, b]` of all subsets of `q[h, b]`.

    Bit k of a sum's row number is 1 if row k of `q` is in the subset.
    """
    sums = jnp.zeros_like(q[:1], shape=(1, q.shape[1]))
    for k in range(q.shape[0]):
        sums = jnp.concatenate([sums, sums + q[k : k + 1]])
    return sums


def _find_subset(q: Array, total: Array) -> Array:
    """Return the mask `[h, b]` of the subset of `q[h, b]` that sums to `total[1, b]` exactly.

    If several subsets have this sum, the result is the subset whose mask, read as a binary number,
    is smallest. A zero is therefore never kept.
    """
    h = q.shape[0]
    low, high = _sums(q[: (h + 1) // 2]), _sums(q[(h + 1) // 2 :])
    missing = total - low
    row = lax.broadcasted_iota(jnp.int32, missing.shape, 0)
    numbers = []
    for start in range(0, high.shape[0], 16):
        number = jnp.full(missing.shape, 2**h, jnp.int32)
        for i in reversed(range(start, min(start + 16, high.shape[0]))):
            number = jnp.where(missing == high[i : i + 1], i * low.shape[0], number)
        numbers.append(number + row)
    table = jnp.concatenate(numbers)
    number = _least(lambda start, rows: table[start : start + rows], table.shape[0])
    return (number >> lax.broadcasted_iota(jnp.int32, q.shape, 0)) & 1 == 1
