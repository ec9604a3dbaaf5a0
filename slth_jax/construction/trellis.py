"""Find, by shortest paths, masks that keep one of 2^b units per row and column.

The mask of `right` is a band with M = 2^b units per column. Unit k starts at column ``j = k // M``
and is connected to the L columns ``j, ..., j + L - 1``. Columns are counted modulo r, so the last
column is followed by the first, and every entry is a sum of L terms. Each row of `left` keeps
exactly one of the M units that start at column j; the number of the kept unit among these M is the
*digit* ``d_j``. Entry j of a row of the masked product is then

    ``sum_{t=0}^{L-1} left[j - t, d_{j-t}] right[j - t, d_{j-t}, j]``.

The digits of a row therefore form a walk through a trellis (a graph of states). The state before
column j consists of the last L - 1 digits. A step chooses the next digit, and the length of the
step is the squared error of entry j. Dynamic programming (Viterbi 1967) over ``2^(b (L - 1))``
states finds the walk with the least squared error. On a CPU a C++ program
(`subset_sum/native/shortest_paths.cc`) finds the shortest walk. On other devices, or if there is no
compiler, the functions below find bit-identical masks. In the dynamic program the rows of `left`
are the last axis, so that every operation is elementwise over rows.
"""

import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from slth_jax.subset_sum import kernel
from slth_jax.types import Array, ArrayLike

_MEMORY = 1 << 27  # bytes of predecessors that are in memory at once
_SETTLE = 6  # windows before and after a state that determine it, except for rare ties


@dataclasses.dataclass(frozen=True)
class Band:
    """The shape of a band: at each column start ``2^bits`` units that span `window` columns."""

    bits: int
    window: int


def solve(
    left: Float[Array, "p n"],
    right: Float[Array, "n r"],
    target: Float[Array, "p r"],
    width: ArrayLike,
    band: Band,
) -> tuple[Bool[Array, "p n"], Bool[Array, "n r"], Float[Array, "p r"]]:
    """Return the masks of both factors and the absolute error of each entry of the product.

    Args:
      left: the factor whose mask keeps, in each row, one unit for each column of the target.
      right: the factor whose mask is a band.
      target: the matrix to approximate.
      width: the number of hidden units that are not padding; may be traced. At every column each
        row chooses one of m units, where m is the largest power of two that is at most ``width //
        r`` and at most ``2^bits``.
      band: the shape of the band, a static argument.
    """
    n, r = right.shape
    bits = min(band.bits, (n // r).bit_length() - 1)
    window = min(band.window, r)
    m = 1 << bits
    # floor(log2(width // r)) without a logarithm: how many powers of two are within reach.
    powers = 2 ** jnp.arange(1, bits + 1, dtype=jnp.int32)
    real = 2 ** jnp.sum(jnp.asarray(width) // r >= powers, dtype=jnp.int32)
    column = jnp.arange(r, dtype=jnp.int32)
    digit = jnp.arange(m, dtype=jnp.int32)
    unit = jnp.where((digit < real)[None], column[:, None] * real + digit[None], 0)  # [r, M]
    reached = (column[:, None] + jnp.arange(window, dtype=jnp.int32)[None]) % r  # [r, L]
    weights = right[unit[:, :, None], reached[:, None, :]]  # [r, M, L]

    def rows(free: Float[Array, "rows n"], goal: Float[Array, "rows r"]) -> Int[Array, "rows r"]:
        return shortest(free[:, unit], weights, goal, real)

    states = m ** (window - 1)
    at_once = max(8, min(64, _MEMORY // (r * states)))
    digits = _in_batches(rows, at_once, left, target)
    kept = column[None] * real + digits  # the unit that row i keeps at column j
    p = left.shape[0]
    left_mask = jnp.zeros((p, n), bool).at[jnp.arange(p)[:, None], kept].set(True)
    start = jnp.arange(n, dtype=jnp.int32) // real
    behind = (column[None] - start[:, None]) % r
    right_mask = (start < r)[:, None] & (behind < window)
    product = jnp.matmul(
        jnp.where(left_mask, left, 0), jnp.where(right_mask, right, 0), precision="highest"
    )
    return left_mask, right_mask, jnp.abs(product - target)


def _in_batches(function, size: int, left: Array, target: Array) -> Int[Array, "p r"]:
    """Return ``function(left, target)``, computed for `size` rows at a time."""
    p = left.shape[0]
    if p <= size:
        return function(left, target)
    empty = -p % size
    batches = (
        jnp.pad(x, ((0, empty), (0, 0))).reshape(-1, size, x.shape[1]) for x in (left, target)
    )
    return jax.lax.map(lambda rows: function(*rows), tuple(batches)).reshape(p + empty, -1)[:p]


def shortest(
    left: Float[Array, "p r M"],
    right: Float[Array, "r M L"],
    target: Float[Array, "p r"],
    usable: ArrayLike,
) -> Int[Array, "p r"]:
    """Return the digits of the shortest closed walk whose state at the seam is fixed beforehand.

    The seam lies between the last and the first column. The state at the seam is taken from the
    shortest open walk across the seam. The result is the shortest walk that starts and ends in the
    state at the seam.

    Args:
      left: ``left[i, j, d]`` is the weight of row i to unit d of the units that start at column j.
      right: ``right[j, d, t]`` is the weight of the same unit to column j + t.
      target: the rows to approximate.
      usable: the number of units per column among which rows choose, at most M; may be traced. All
        digits are below `usable`.
    """
    left, right, target = (x.astype(jnp.float32) for x in (left, right, target))
    usable = jnp.asarray(usable, jnp.int32)
    if right.shape[-1] == 1:  # no entry depends on two digits
        length = jnp.square(target[..., None] - left * right[None, ..., 0])
        barred = jnp.arange(left.shape[-1]) >= usable
        length = jnp.where(barred[None, None], jnp.inf, length)
        return jnp.argmin(length, axis=-1).astype(jnp.int32)
    if not kernel.ready():
        return _by_xla(left, right, target, usable)
    return jax.lax.platform_dependent(left, right, target, usable, cpu=_by_kernel, default=_by_xla)


def _by_kernel(left: Array, right: Array, target: Array, usable: Array) -> Int[Array, "p r"]:
    r, _, window = right.shape
    digits = jax.ShapeDtypeStruct(target.shape, jnp.int32)
    call = jax.ffi.ffi_call(kernel.WALKS, digits, vmap_method="broadcast_all")
    return call(left, right, target, usable, settle=min(r, _SETTLE * window))


def _by_xla(
    left: Float[Array, "p r M"],
    right: Float[Array, "r M L"],
    target: Float[Array, "p r"],
    usable: Int[Array, ""],
) -> Int[Array, "p r"]:
    p, r, m = left.shape
    window = right.shape[-1]
    chex.assert_shape([right, target], [(r, m, window), (p, r)])
    free, goal = jnp.transpose(left, (1, 2, 0)), target.T  # [r, M, p], [r, p]
    # Products of rounded numbers are exact, so that fused and separate operations agree to the
    # bit and masks do not depend on how a program was compiled.
    terms = _rounded(free[:, :, None] * right[..., None])  # [r, M, L, p]
    forward = partial(_forward, terms, goal, jnp.arange(m) < usable)
    settle = min(r, _SETTLE * window)
    states = m ** (window - 1)
    cost = jnp.zeros((states, p), jnp.float32)
    cost, _ = forward(cost, jnp.arange(r - settle, r))
    cost, before = forward(cost, jnp.arange(settle))
    last = jnp.argmin(cost, axis=0).astype(jnp.int32)
    seam, _ = _backward(last, before, m)
    closed = jnp.arange(states, dtype=jnp.int32)[:, None] == seam[None]
    _, before = forward(jnp.where(closed, 0.0, jnp.inf).astype(jnp.float32), jnp.arange(r))
    _, digits = _backward(seam, before, m)
    return digits.T


def _forward(terms, goal, usable, cost: Float[Array, "S p"], columns: Int[Array, " steps"]):
    """Return the state costs after `columns`, and the oldest digit that each step dropped."""
    r, m, window, p = terms.shape

    def step(cost, j):
        # Target of entry j minus chosen terms, by the digits of columns j-L+1 .. j-1.
        left_over = goal[j][None]
        for t in range(window - 1, 0, -1):
            term = terms[(j - t) % r, :, t]
            left_over = (left_over[:, None] - term[None]).reshape(-1, p)
        left_over = _rounded(left_over).reshape(m, -1, p)  # [oldest digit, later digits, p]
        term = terms[j, :, 0]  # [new digit, p]
        # (left_over - term)^2 = left_over^2 - 2 left_over term + term^2
        so_far = cost.reshape(m, -1, p) + left_over * left_over
        twice = 2 * left_over
        best = jnp.full((so_far.shape[1], m, p), jnp.inf, jnp.float32)
        dropped = jnp.zeros(best.shape, jnp.uint8 if m <= 256 else jnp.uint16)

        def shorter(digit, least):
            best, dropped = least
            length = so_far[digit][:, None] - twice[digit][:, None] * term[None]
            better = length < best
            digit = jnp.asarray(digit).astype(dropped.dtype)
            return jnp.where(better, length, best), jnp.where(better, digit, dropped)

        unroll = m if m <= 16 else None
        best, dropped = jax.lax.fori_loop(0, m, shorter, (best, dropped), unroll=unroll)
        best = best + jnp.where(usable[:, None], term * term, jnp.inf)[None]
        best = best.reshape(-1, p)
        best = best - jnp.min(best, axis=0, keepdims=True)  # so that float32 stays accurate
        return best, dropped.reshape(-1, p)

    return jax.lax.scan(step, cost, columns)


def _backward(state: Int[Array, " p"], dropped, m: int):
    """Trace a walk back from its last state; return its first state and the digits it chose."""
    states = dropped.shape[1]

    def step(state, digits):
        oldest = jnp.take_along_axis(digits, state[None], axis=0)[0].astype(jnp.int32)
        return (oldest * states + state) // m, state % m

    return jax.lax.scan(step, state, dropped, reverse=True)


def _rounded(x: Array) -> Array:
    """Round x to 12 binary digits, so that a product of two such numbers is exact in float32."""
    return jax.lax.reduce_precision(x, 8, 11)
