"""Entries of target matrices as subset sums, row by row, with shifts to choose among."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from slth_jax import subset_sum
from slth_jax.construction.rules.deal import Deal, Rule
from slth_jax.subset_sum import Solution
from slth_jax.types import Array


class Rows(NamedTuple):
    """What each row of the free factor keeps, and what it reaches with that."""

    kept: Array  # bool [p, r, slots], the samples that are kept
    pattern: Array  # bool [p, blocks, R], the shift units that are kept
    total: Array  # [p, r], the entries of the masked product
    error: Array  # [p, r], their distances from the target
    beyond: Array  # bool [p, r]: the target is beyond the sum of all samples of its sign


class Sums(NamedTuple):
    """The subset sums of some rows, by blocks of c columns; zeros fill up the last block."""

    samples: Array  # [p, blocks, c, slots]
    shifts: Array  # [p, blocks, R, c], what each shift unit adds
    target: Array  # [p, blocks, c]


class _State(NamedTuple):
    """The best of each block so far."""

    score: Array  # [p, blocks], the sum of squared errors
    tried: Array  # int32 [p, blocks], how many patterns were; they have an order, see `_ordered`
    number: Array  # int32 [p, blocks], the best pattern: bit u is shift unit u
    kept: Array  # bool [p, blocks, c, slots]
    total: Array  # [p, blocks, c]


def sums(left: Array, right: Array, target: Array, deal: Deal) -> Sums:
    """Return the subset sums of ``left [p, n]``, ``right [n, r]`` and ``target [p, r]``."""
    p, r = target.shape
    blocks, c = deal.shift.shape[0], deal.columns
    column = jnp.arange(r)[:, None]
    factor = jnp.where(deal.filled, right[deal.units, column], 0)  # [r, slots]
    samples = left[:, deal.units] * factor[None]

    def by_block(x: Array) -> Array:
        padded = jnp.pad(x, [(0, 0), (0, blocks * c - r)] + [(0, 0)] * (x.ndim - 2))
        return padded.reshape(p, blocks, c, *x.shape[2:])

    unit = deal.shift[jnp.arange(r) // c]  # [r, R]
    moved = left[:, unit] * jnp.where(unit < 0, 0, right[unit, column])[None]
    return Sums(by_block(samples), by_block(moved).swapaxes(2, 3), by_block(target))


def best(problems: Sequence[Sums], columns: Sequence[int], rule: Rule) -> list[Rows]:
    """Return what the rows of all problems, of so many columns each, keep; solved as one batch."""
    if not rule.shift_units:
        found = _solve([p.samples for p in problems], [p.target for p in problems])
        none = [jnp.zeros(p.target.shape[:2], jnp.int32) for p in problems]
        return [
            _rows(problem, number, solution.mask, solution.total, r)
            for problem, number, solution, r in zip(problems, none, found, columns, strict=True)
        ]

    ordered = [_ordered(problem, rule) for problem in problems]

    def step(_, states: list[_State]) -> list[_State]:
        blocks = [_worst(state, rule) for state in states]
        here = [
            jax.tree.map(lambda x, at=block: _take(x, at), problem)
            for problem, block in zip(problems, blocks, strict=True)
        ]
        patterns = [
            _next_pattern(order, state, block)
            for order, state, block in zip(ordered, states, blocks, strict=True)
        ]
        values = [_shifted(part, number) for part, number in zip(here, patterns, strict=True)]
        found = _solve([part.samples for part in here], values)
        return [_better(*of_one) for of_one in zip(states, blocks, patterns, found, strict=True)]

    states = jax.lax.fori_loop(0, _steps(rule), step, [_start(problem) for problem in problems])
    return [
        _rows(problem, state.number, state.kept, state.total, r)
        for problem, state, r in zip(problems, states, columns, strict=True)
    ]


def _solve(samples: Sequence[Array], values: Sequence[Array]) -> list[Solution]:
    """Solve ``samples [..., slots]``, ``value [...]`` of several problems as one batch.

    One solver for all, since it is what takes long to compile; problems with fewer slots are
    padded with zeros, which change none of their results.
    """
    slots = max(x.shape[-1] for x in samples)
    padded = [jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, slots - x.shape[-1])]) for x in samples]
    # Said, so that a source has the same masks however wide the slots are padded.
    solution = subset_sum.solve(
        jnp.concatenate([x.reshape(-1, slots) for x in padded]),
        jnp.concatenate([x.reshape(-1) for x in values]),
        max_exact=subset_sum.PART,
    )
    found, start = [], 0
    for x, value in zip(samples, values, strict=True):
        part = slice(start, start + value.size)
        start = part.stop
        shaped = Solution(*(y[part].reshape(*value.shape, *y.shape[1:]) for y in solution))
        found.append(shaped._replace(mask=shaped.mask[..., : x.shape[-1]]))
    return found


def _worst(state: _State, rule: Rule) -> Array:
    """Return the blocks `[p, count]` of each row that are next: the worst with a pattern left."""
    open_ones = jnp.where(state.tried < 2**rule.shift_units, state.score, -1)
    # Sorted, since top_k would gather rows that are spread over devices.
    order = jnp.argsort(-open_ones, axis=-1, stable=True)
    return order[:, : math.ceil(rule.reroll * order.shape[1])]


def _steps(rule: Rule) -> int:
    """Return how often a share of a row's blocks is solved."""
    rerolls = 2**rule.shift_units - 1 if rule.rerolls is None else rule.rerolls
    return math.ceil(1 / rule.reroll) + rerolls


def _ordered(problem: Sums, rule: Rule) -> Array | None:
    """Return the patterns of each block in the order of trial `[p, blocks, count]`.

    None: by number.
    """
    if not rule.centred:
        return None
    count = min(2**rule.shift_units, _steps(rule))
    return jax.vmap(lambda row: _by_centre(row, count))(problem)


def _by_centre(row: Sums, count: int) -> Array:
    """Order the patterns of one row: `Sums` without its first axis; returns `[blocks, count]`.

    Sums over samples and shifts go one by one: a reduction may be ordered otherwise in another
    program, and then nearly equal patterns would change places.
    """
    samples, shifts, target = row
    centre, spread = jnp.zeros_like(target), jnp.zeros_like(target)
    for k in range(samples.shape[-1]):
        centre += samples[..., k]
        spread += _short_square(samples[..., k])
    number = jnp.arange(2 ** shifts.shape[1], dtype=jnp.int32)
    value = jnp.broadcast_to(
        (target - centre / 2)[:, None], (target.shape[0], number.size, target.shape[1])
    )
    for u in range(shifts.shape[1]):
        bit = (number >> u) & 1 == 1
        value = value - jnp.where(bit[None, :, None], shifts[:, u][:, None], 0)
    # Blocks are filled up by columns without samples: those are met by every pattern.
    off = jnp.where((spread > 0)[:, None], _short_square(value) / (spread / 4)[:, None], 0)
    return jnp.argsort(jnp.max(off, axis=-1), axis=-1, stable=True)[:, :count].astype(jnp.int32)


def _next_pattern(ordered: Array | None, state: _State, block: Array) -> Array:
    """Return the pattern that each of the chosen blocks tries next."""
    tried = _take(state.tried, block)
    if ordered is None:
        return tried
    last = ordered.shape[-1] - 1
    return jnp.take_along_axis(_take(ordered, block), jnp.minimum(tried, last)[..., None], axis=-1)[
        ..., 0
    ]


def _start(problem: Sums) -> _State:
    none = jnp.zeros(problem.target.shape[:2], jnp.int32)
    return _State(
        score=jnp.full(none.shape, jnp.inf, problem.target.dtype),
        tried=none,
        number=none,
        kept=jnp.zeros(problem.samples.shape, bool),
        total=jnp.zeros_like(problem.target),
    )


def _better(state: _State, block: Array, pattern: Array, found: Solution) -> _State:
    """Return the state with what a pattern gave the chosen blocks, where that is better."""
    tried = _take(state.tried, block)
    score = _sum_of_squares(found.error)
    better = (score < _take(state.score, block)) | (tried == 0)

    def chosen(new: Array, old: Array) -> Array:
        where = better.reshape(better.shape + (1,) * (new.ndim - 2))
        return _put(old, block, jnp.where(where, new, _take(old, block)))

    return _State(
        score=chosen(score, state.score),
        tried=_put(state.tried, block, tried + 1),
        number=chosen(pattern, state.number),
        kept=chosen(found.mask, state.kept),
        total=chosen(found.total, state.total),
    )


def _rows(problem: Sums, number: Array, kept: Array, total: Array, r: int) -> Rows:
    """Return by row and column what the blocks' best patterns `number [p, blocks]` reach."""
    value = _shifted(problem, number)
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


def _bits(number: Array, count: int) -> Array:
    """Return the lowest `count` bits of ``number [p, blocks]`` on a last axis, the lowest first."""
    return (number[..., None] >> jnp.arange(count, dtype=number.dtype)[None, None]) & 1 == 1


def _shifted(problem: Sums, number: Array) -> Array:
    """Return what is left of the targets `[p, blocks, c]` by a pattern of each block."""
    bits = _bits(number, problem.shifts.shape[2])
    value = problem.target
    # One after another: a reduction may be ordered otherwise in another program.
    for u in range(problem.shifts.shape[2]):
        value = value - jnp.where(bits[:, :, u, None], problem.shifts[:, :, u], 0)
    return value


def _sum_of_squares(error: Array) -> Array:
    """Return the sum over the last axis, the same bits in every program."""
    squares = _short_square(error)
    total = squares[..., 0]
    for j in range(1, squares.shape[-1]):
        total = total + squares[..., j]
    return total


def _short_square(x: Array) -> Array:
    """Return x^2 of half of the digits, which is exact.

    So it does not matter whether multiplication and a following addition are fused.
    """
    info = jnp.finfo(x.dtype)
    short = jax.lax.reduce_precision(x, info.nexp, (info.nmant + 1) // 2 - 1)
    return short * short


# By row: ``x [p, blocks, ...]`` at ``block [p, count]``.
_take = jax.vmap(lambda x, block: x[block])
_put = jax.vmap(lambda x, block, new: x.at[block].set(new))
