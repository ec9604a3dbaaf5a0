"""Approximate each row of a target matrix by subset sums, and choose the row's shift units.

The letters in shapes are: p rows of `left`, r columns of `right` in blocks of c columns, R shift
units per block, `slots` units per column.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from slth_jax import subset_sum
from slth_jax.construction.rules.rule import Assignment, Search
from slth_jax.subset_sum import Solution
from slth_jax.types import Array


class Rows(NamedTuple):
    """The samples and shift units that each row of `left` keeps, and the errors of its entries."""

    kept: Bool[Array, "p r slots"]
    pattern: Bool[Array, "p blocks R"]
    total: Float[Array, "p r"]  # the entries of the masked product
    error: Float[Array, "p r"]  # the absolute differences between these entries and the target
    beyond: Bool[Array, "p r"]  # whether the target exceeds the sum of all samples of its sign


class Sums(NamedTuple):
    """The subset sums of each row, in blocks of c columns; the last block is padded with zeros."""

    samples: Float[Array, "*p blocks c slots"]
    shifts: Float[Array, "*p blocks R c"]  # the contribution of each shift unit
    target: Float[Array, "*p blocks c"]


class _State(NamedTuple):
    """The best pattern (choice of shift units) found so far for each block of each row."""

    score: Float[Array, "p blocks"]  # the sum of squared errors
    tried: Int[Array, "p blocks"]  # the number of patterns tried, in the order of `_ordered`
    number: Int[Array, "p blocks"]  # the best pattern; bit u stands for shift unit u
    kept: Bool[Array, "p blocks c slots"]
    total: Float[Array, "p blocks c"]


def sums(
    left: Float[Array, "p n"],
    right: Float[Array, "n r"],
    target: Float[Array, "p r"],
    assignment: Assignment,
) -> Sums:
    """Return the subset sums of a product ``left right`` whose units are assigned to columns."""
    (p, r), n = target.shape, left.shape[1]
    chex.assert_shape([left, right], [(p, n), (n, r)])
    blocks, c = assignment.shift.shape[0], assignment.columns
    column = jnp.arange(r)[:, None]
    factor = jnp.where(assignment.filled, right[assignment.units, column], 0)  # [r, slots]
    samples = left[:, assignment.units] * factor[None]  # [p, r, slots]

    def by_block(x: Array) -> Array:
        padded = jnp.pad(x, [(0, 0), (0, blocks * c - r)] + [(0, 0)] * (x.ndim - 2))
        return padded.reshape(p, blocks, c, *x.shape[2:])

    unit = assignment.shift[jnp.arange(r) // c]  # [r, R]
    moved = left[:, unit] * jnp.where(unit < 0, 0, right[unit, column])[None]  # [p, r, R]
    return Sums(by_block(samples), by_block(moved).swapaxes(2, 3), by_block(target))


def best(
    problems: Sequence[Sums], columns: Sequence[int], search: Search, most: int | None = None
) -> list[Rows]:
    """Solve the subset sums of all problems as one batch; return the best masks of all rows.

    Args:
      problems: the subset sums of each problem.
      columns: the number of columns r of each problem, without the padding of the last block.
      search: the settings of the search, which are the same for every row.
      most: the largest number of samples per entry that are kept; None for no limit.
    """
    if not search.shift_units:
        solutions = _solve([p.samples for p in problems], [p.target for p in problems], most)
        zeros = [jnp.zeros(p.target.shape[:2], jnp.int32) for p in problems]
        return [
            _rows(problem, number, solution.mask, solution.total, r)
            for problem, number, solution, r in zip(
                problems, zeros, solutions, columns, strict=True
            )
        ]

    ordered = [_ordered(problem, search) for problem in problems]

    def step(_, states: list[_State]) -> list[_State]:
        # The blocks `[p, count]` of each row that are solved again, and their next patterns.
        blocks = [_worst(state, search) for state in states]
        parts = [
            jax.tree.map(lambda x, at=block: _take(x, at), problem)
            for problem, block in zip(problems, blocks, strict=True)
        ]
        patterns = [
            _next_pattern(order, state, block)
            for order, state, block in zip(ordered, states, blocks, strict=True)
        ]
        values = [_shifted(part, number) for part, number in zip(parts, patterns, strict=True)]
        solutions = _solve([part.samples for part in parts], values, most)
        return [
            _better(*arguments)
            for arguments in zip(states, blocks, patterns, solutions, strict=True)
        ]

    states = jax.lax.fori_loop(0, _steps(search), step, [_start(problem) for problem in problems])
    return [
        _rows(problem, state.number, state.kept, state.total, r)
        for problem, state, r in zip(problems, states, columns, strict=True)
    ]


def _solve(
    samples: Sequence[Array], values: Sequence[Array], most: int | None = None
) -> list[Solution]:
    """Solve the subset sums of several problems as one batch.

    Each problem has samples of shape `[..., slots]` and values of shape `[...]`. The solver takes
    long to compile, so it is compiled once for all problems. Problems with fewer slots (samples per
    sum) are padded with zeros, which do not change their results.
    """
    slots = max(x.shape[-1] for x in samples)
    padded = [jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, slots - x.shape[-1])]) for x in samples]
    instances = (
        jnp.concatenate([x.reshape(-1, slots) for x in padded]),
        jnp.concatenate([x.reshape(-1) for x in values]),
    )
    if most is None:
        # `max_exact` is passed because its default, unlike masks, may depend on the padded length.
        batch = subset_sum.solve(*instances, max_exact=subset_sum.PART)
    else:
        batch = subset_sum.solve_few(*instances, most=most)
    solutions, start = [], 0
    for x, value in zip(samples, values, strict=True):
        part = slice(start, start + value.size)
        start = part.stop
        shaped = Solution(*(y[part].reshape(*value.shape, *y.shape[1:]) for y in batch))
        solutions.append(shaped._replace(mask=shaped.mask[..., : x.shape[-1]]))
    return solutions


def _worst(state: _State, search: Search) -> Int[Array, "p count"]:
    """Return, for each row, the blocks with the largest errors that still have untried patterns."""
    candidates = jnp.where(state.tried < 2**search.shift_units, state.score, -1)
    p, blocks = candidates.shape
    count = math.ceil(search.reroll * blocks)
    index = jnp.arange(blocks, dtype=jnp.int32)[None]

    def pick(k, carry):
        remaining, chosen = carry  # [p, blocks], [p, count]
        largest = jnp.max(remaining, axis=1, keepdims=True)
        first = jnp.min(jnp.where(remaining == largest, index, blocks), axis=1)
        return jnp.where(index == first[:, None], -2, remaining), chosen.at[:, k].set(first)

    # This takes half the time of a sort; top_k would gather rows that are spread over devices.
    start = candidates, jnp.zeros((p, count), jnp.int32)
    return jax.lax.fori_loop(0, count, pick, start)[1]


def _steps(search: Search) -> int:
    """Return the number of steps of the search; each step solves a fraction of a row's blocks."""
    rerolls = 2**search.shift_units - 1 if search.rerolls is None else search.rerolls
    return math.ceil(1 / search.reroll) + rerolls


def _ordered(problem: Sums, search: Search) -> Int[Array, "p blocks count"] | None:
    """Return the order in which each block tries its patterns; None means by increasing number."""
    if not search.centred:
        return None
    count = min(2**search.shift_units, _steps(search))
    return jax.vmap(lambda row: _by_centre(row, count))(problem)


def _by_centre(row: Sums, count: int) -> Int[Array, "blocks count"]:
    """Sort the patterns of each block of one row by how well they centre the block's targets.

    Samples and shifts are added one by one, in a fixed order. A JAX reduction might add in a
    different order in another program, and the order of nearly equal patterns would then change.
    """
    samples, shifts, target = row  # [blocks, c, slots], [blocks, R, c], [blocks, c]
    centre, spread = jnp.zeros_like(target), jnp.zeros_like(target)
    for k in range(samples.shape[-1]):
        centre += samples[..., k]
        spread += _short_square(samples[..., k])
    number = jnp.arange(2 ** shifts.shape[1], dtype=jnp.int32)  # [2^R]
    value = jnp.broadcast_to(
        (target - centre / 2)[:, None], (target.shape[0], number.size, target.shape[1])
    )  # [blocks, 2^R, c], the distance of each shifted target from the middle
    for u in range(shifts.shape[1]):
        bit = (number >> u) & 1 == 1
        value = value - jnp.where(bit[None, :, None], shifts[:, u][:, None], 0)
    # The padding columns of the last block have no samples, so every pattern suits them.
    off = jnp.where((spread > 0)[:, None], _short_square(value) / (spread / 4)[:, None], 0)
    return jnp.argsort(jnp.max(off, axis=-1), axis=-1, stable=True)[:, :count].astype(jnp.int32)


def _next_pattern(
    ordered: Int[Array, "p blocks tries"] | None, state: _State, block: Int[Array, "p count"]
) -> Int[Array, "p count"]:
    """Return the pattern that each of the chosen blocks tries next."""
    tried = _take(state.tried, block)
    if ordered is None:
        return tried
    last = ordered.shape[-1] - 1
    return jnp.take_along_axis(_take(ordered, block), jnp.minimum(tried, last)[..., None], axis=-1)[
        ..., 0
    ]


def _start(problem: Sums) -> _State:
    zeros = jnp.zeros(problem.target.shape[:2], jnp.int32)
    return _State(
        score=jnp.full(zeros.shape, jnp.inf, problem.target.dtype),
        tried=zeros,
        number=zeros,
        kept=jnp.zeros(problem.samples.shape, bool),
        total=jnp.zeros_like(problem.target),
    )


def _better(
    state: _State,
    block: Int[Array, "p count"],
    pattern: Int[Array, "p count"],
    solution: Solution,
) -> _State:
    """Return the new state: each chosen block takes its new `pattern` if this reduces its error."""
    tried = _take(state.tried, block)
    score = _sum_of_squares(solution.error)
    chex.assert_equal_shape([block, pattern, score])
    better = (score < _take(state.score, block)) | (tried == 0)

    def chosen(new: Array, old: Array) -> Array:
        where = better.reshape(better.shape + (1,) * (new.ndim - 2))
        return _put(old, block, jnp.where(where, new, _take(old, block)))

    return _State(
        score=chosen(score, state.score),
        tried=_put(state.tried, block, tried + 1),
        number=chosen(pattern, state.number),
        kept=chosen(solution.mask, state.kept),
        total=chosen(solution.total, state.total),
    )


def _rows(
    problem: Sums,
    number: Int[Array, "p blocks"],
    kept: Bool[Array, "p blocks c slots"],
    total: Float[Array, "p blocks c"],
    r: int,
) -> Rows:
    """Return the results of the best patterns, with the columns of all blocks on one axis."""
    value = _shifted(problem, number)  # [p, blocks, c]
    most = jnp.sum(jnp.maximum(problem.samples, 0), axis=-1)
    least = jnp.sum(jnp.minimum(problem.samples, 0), axis=-1)

    def by_column(x: Array) -> Array:
        return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :r]

    return Rows(
        kept=by_column(kept),
        pattern=_bits(number, problem.shifts.shape[2]),
        total=by_column(total + (problem.target - value)),
        error=by_column(jnp.abs(value - total)),
        beyond=by_column((value > most) | (value < least)),
    )


def _bits(number: Int[Array, "p blocks"], count: int) -> Bool[Array, "p blocks count"]:
    """Return the lowest `count` bits of each number, the lowest first."""
    return (number[..., None] >> jnp.arange(count, dtype=number.dtype)[None, None]) & 1 == 1


def _shifted(problem: Sums, number: Int[Array, "p blocks"]) -> Float[Array, "p blocks c"]:
    """Return the targets minus the contributions of the shift units that each block keeps."""
    bits = _bits(number, problem.shifts.shape[2])  # [p, blocks, R]
    value = problem.target
    # Subtracted one after another: a reduction might have a different order in another program.
    for u in range(problem.shifts.shape[2]):
        value = value - jnp.where(bits[:, :, u, None], problem.shifts[:, :, u], 0)
    return value


def _sum_of_squares(error: Float[Array, "p count c"]) -> Float[Array, "p count"]:
    """Return the sum of squares over the last axis, bit-identical in every program."""
    squares = _short_square(error)
    total = squares[..., 0]
    for j in range(1, squares.shape[-1]):
        total = total + squares[..., j]
    return total


def _short_square(x: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
    """Round x to half of its mantissa bits and return its square, which is then exact.

    A sum of exact squares does not depend on whether XLA fuses multiplication and addition.
    """
    info = jnp.finfo(x.dtype)
    short = jax.lax.reduce_precision(x, info.nexp, (info.nmant + 1) // 2 - 1)
    return short * short


# These functions read and write, row by row, the entries of ``x [p, blocks, ...]`` at the indices
# ``block [p, count]``.
_take = jax.vmap(lambda x, block: x[block])
_put = jax.vmap(lambda x, block, new: x.at[block].set(new))
