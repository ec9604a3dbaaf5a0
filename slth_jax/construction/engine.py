"""The engine: find masks under which the product of two random factors approximates a matrix.

``target_ij ~ sum_k (left * left_mask)_ik (right * right_mask)_kj`` (Lemmas 4 and 7). A rule assigns
each hidden unit k to a column j of `right`, the *grouped factor*; this assignment is the mask of
`right`. Entry (i, j) of the target is approximated by a subset sum over the samples ``left_ik
right_kj`` of the units k assigned to column j. The mask of `left`, the *free factor*, keeps the
samples in the chosen subsets.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from slth_jax import checks
from slth_jax.construction import search, trellis
from slth_jax.construction.rules.rule import Assignment, Rule
from slth_jax.construction.search import Rows
from slth_jax.construction.trellis import Band
from slth_jax.types import Array, ArrayLike


class Report(NamedTuple):
    """Statistics of the subset sums that yield masks; each sum approximates one target entry."""

    num_sums: Array
    out_of_reach: Array  # number of targets larger than the sum of all samples of their sign
    max_error: Array

    def __repr__(self) -> str:
        """Return the report as one line of text; batched and traced arrays are shown as arrays."""
        known = ((name, checks.concrete(value)) for name, value in self._asdict().items())
        shown = (
            f"{name}={getattr(self, name)}"
            if value is None or value.ndim
            else f"{name}={value:.3g}"
            for name, value in known
        )
        return f"Report({', '.join(shown)})"


class Pruned(NamedTuple):
    """The result of pruning a random source: the masks, and a report on their subset sums."""

    masks: Any
    report: Any


class Problem(NamedTuple):
    """A target matrix and its two factors, with hidden units assigned to the columns of `right`."""

    left: Float[Array, "*batch p n"]
    right: Float[Array, "*batch n r"]
    target: Float[Array, "*batch p r"]
    assignment: Assignment
    rule: Rule
    width: Int[Array, "*batch"]  # the number of hidden units that are not padding
    swapped: bool = False  # whether the factors were exchanged, to group over the rows of `left`


class Solved(NamedTuple):
    """The solution of a `Problem`: the masks of its two factors, and a report."""

    left_mask: Bool[Array, "*batch p n"]
    right_mask: Bool[Array, "*batch n r"]
    report: Report


def product(
    left: Float[Array, "*batch p n"],
    right: Float[Array, "*batch n r"],
    target: Float[Array, "*batch p r"],
    rule: Rule,
    width: ArrayLike | None = None,
) -> Problem:
    """Assign the hidden units to columns; return the `Problem` ``target ~ left right``.

    Args:
      left: the free factor: each of its rows keeps a subset of the hidden units.
      right: the grouped factor: each of its columns keeps the hidden units assigned to it. If the
        rule has `either_side` and `left` has fewer rows than `right` has columns, the two factors
        exchange their roles.
      target: the matrix to approximate.
      rule: the rule that assigns hidden units to columns.
      width: the number of hidden units, the same for the whole batch. If `width` is None, hidden
        units at the end that are all zeros in both factors are not counted. All-zero units at the
        end are padding and change no mask, inside `jit` and `vmap` too.
    """
    *batch, p, n = left.shape
    chex.assert_shape([right, target], [(*batch, n, None), (*batch, p, right.shape[-1])])
    swapped = rule.either_side and left.shape[-2] < right.shape[-1]
    if swapped:
        left, right, target = (jnp.matrix_transpose(w) for w in (right, left, target))
    if width is None:
        width = hidden_width(left, right)
    else:
        width = jnp.broadcast_to(jnp.asarray(width), left.shape[:-2])

    def assign(left: Array, right: Array, target: Array, width: Array) -> Assignment:
        return rule.assignment(right, width, left=left, target=target)

    assignment = _batched(assign, len(batch))(left, right, target, width)
    return Problem(left, right, target, assignment, rule, width, swapped)


def hidden_width(
    left: Float[Array, "*batch p n"], right: Float[Array, "*batch n r"]
) -> Int[Array, "*batch"]:
    """Return the number of hidden units, not counting all-zero units at the end."""
    real = jnp.any(left != 0, axis=-2) | jnp.any(right != 0, axis=-1)  # [*batch, n]
    last = jnp.argmax(jnp.flip(real, axis=-1), axis=-1)
    return jnp.where(jnp.any(real, axis=-1), real.shape[-1] - last, 0)


def validate_width(name: str, n: int, width: ArrayLike, needed: int) -> None:
    """Refuse a source that has fewer than `needed` hidden units, one for each group.

    `n` counts the hidden units with padding, `width` without padding. `width` may be a traced
    value, or an array with the width of each problem of a batch.
    """
    known = checks.concrete(width)
    least = n if known is None else min(n, int(known.min()))
    if least < needed:
        raise checks.fail(name, f"at least {needed}, one hidden unit per group", least)


def solve(problems: Sequence[Problem]) -> list[Solved]:
    """Solve several problems; the subset sums of problems with the same rule form one batch."""
    solved: dict[int, Solved] = {}
    for rule in dict.fromkeys(problem.rule for problem in problems):
        places = [i for i, problem in enumerate(problems) if problem.rule == rule]
        batch = [problems[i] for i in places]
        if rule.band is not None:
            parts = [_shortest_paths(problem, rule.band) for problem in batch]
        else:
            columns = [problem.target.shape[-1] for problem in batch]
            rows = search.best(
                [_sums(problem) for problem in batch], columns, rule.search, rule.most
            )
            parts = [_solved(*pair) for pair in zip(batch, rows, strict=True)]
        solved |= dict(zip(places, parts, strict=True))
    return [solved[i] for i in range(len(problems))]


def _sums(problem: Problem) -> search.Sums:
    """Return the subset sums of a problem; the batch axes and axis p become one axis of rows."""
    lead = problem.target.ndim - 1
    batched = _batched(search.sums, lead - 1)(*problem[:4])
    return jax.tree.map(lambda x: x.reshape(math.prod(x.shape[:lead]), *x.shape[lead:]), batched)


def _shortest_paths(problem: Problem, band: Band) -> Solved:
    """Solve a `Problem` by shortest paths, with a band matrix as the mask of `right`."""
    solve_one = partial(trellis.solve, band=band)
    width = jnp.broadcast_to(problem.width, problem.target.shape[:-2])
    parts = _batched(solve_one, problem.target.ndim - 2)(*problem[:3], width)
    left, right, error = parts
    report = Report(jnp.asarray(problem.target.size), jnp.asarray(0), jnp.max(error))
    return _masks(problem, left, right, report)


def solve_rows(
    left: Float[Array, "p n"],
    right: Float[Array, "n r"],
    target: Float[Array, "p r"],
    assignment: Assignment,
    rule: Rule,
) -> Rows:
    """Choose, for each row of `left`, the hidden units (samples) that its mask keeps.

    A row's result does not depend on the other rows or their number, nor on `jit`, `vmap` or
    sharding. The rows of a matrix may therefore be split over devices that work independently.

    Args:
      left: all or some rows of the first factor.
      right: the second factor, whose hidden units are assigned to its columns.
      target: the rows of the target matrix that correspond to the rows of `left`.
      assignment: the result of ``rule.assignment(right, width)``.
      rule: the rule that made the assignment.

    Raises:
      ValueError: the rule solves rows by shortest paths, not by subset sums.
    """
    if rule.band is not None:
        raise checks.fail("construction", "a rule of subset sums", repr(rule.name))
    n, r = right.shape
    chex.assert_shape([left, target], [(None, n), (left.shape[0], r)])
    chex.assert_axis_dimension(assignment.units, 0, r)
    sums = search.sums(left, right, target, assignment)
    return search.best([sums], [r], rule.search, rule.most)[0]


def left_mask(
    assignment: Assignment,
    kept: Bool[Array, "p r slots"],
    pattern: Bool[Array, "p blocks R"],
    n: int,
) -> Bool[Array, "p {n}"]:
    """Return the mask of `left` from the samples and shift units that each of its rows keeps.

    A shift unit is a hidden unit that is connected to several columns.
    """
    p = kept.shape[0]
    chex.assert_shape(kept, (p, *assignment.units.shape))
    bits = [kept.reshape(p, -1), pattern.reshape(p, -1), jnp.zeros((p, 1), bool)]
    filled = jnp.where(assignment.filled, assignment.units, n)
    unit = jnp.concatenate([filled.reshape(-1), _shift_or(assignment, n).reshape(-1)])
    # The index of each unit's bit. Unassigned units have the index of the zero after the last bit.
    place = jnp.full(n, unit.size).at[unit].set(jnp.arange(unit.size), mode="drop")
    return jnp.concatenate(bits, axis=1)[:, place]


def right_mask(assignment: Assignment, n: int) -> Bool[Array, "{n} r"]:
    """Return the mask of `right`, the grouped factor.

    Each unit is connected to the column that it is assigned to; a shift unit is connected to all
    columns of one block.
    """
    column = jnp.arange(assignment.units.shape[0])
    filled = jnp.where(assignment.filled, assignment.units, n)  # [r, slots]
    shift = _shift_or(assignment, n)[column // assignment.columns]  # [r, R]
    unit = jnp.concatenate([filled, shift], axis=1)
    return jnp.zeros((n, column.size), bool).at[unit, column[:, None]].set(True, mode="drop")


def split_by_sign(
    assignment: Assignment, right: Float[Array, "n r"]
) -> tuple[Assignment, Assignment]:
    """Split an assignment in two: units with positive weight and units with negative weight.

    The weight of a unit is its entry of `right` in the column that it is assigned to. In both parts
    the filled slots of a column (slots with a unit) come before its empty slots.
    """
    column = jnp.arange(right.shape[1])[:, None]
    weight = jnp.where(assignment.filled, right[assignment.units, column], 0)  # [r, slots]

    def half(filled: Bool[Array, "r slots"]) -> Assignment:
        order = jnp.argsort(~filled, axis=-1)
        units, in_order = (
            jnp.take_along_axis(x, order, axis=-1) for x in (assignment.units, filled)
        )
        return assignment._replace(units=units, filled=in_order)

    return half(weight > 0), half(weight < 0)


def joined(reports: Sequence[Report]) -> Report:
    """Combine several reports into one report on all their subset sums."""
    parts: Report = jax.tree.map(lambda *values: jnp.stack(values), *reports)
    return Report(jnp.sum(parts.num_sums), jnp.sum(parts.out_of_reach), jnp.max(parts.max_error))


def _solved(problem: Problem, rows: Rows) -> Solved:
    """Return the masks and the report of a `Problem` whose `rows` have been solved.

    In `rows` the batch axes and the axis p are merged into one axis.
    """
    target, n = problem.target, problem.left.shape[-1]
    report = Report(
        num_sums=jnp.asarray(target.size),
        out_of_reach=jnp.sum(rows.beyond),
        max_error=jnp.max(rows.error),
    )
    kept, pattern = (x.reshape(*target.shape[:-1], *x.shape[1:]) for x in rows[:2])
    lifted = partial(_batched, times=target.ndim - 2)
    left = lifted(partial(left_mask, n=n))(problem.assignment, kept, pattern)
    right = lifted(partial(right_mask, n=n))(problem.assignment)
    return _masks(problem, left, right, report)


def _masks(problem: Problem, left: Array, right: Array, report: Report) -> Solved:
    """Return masks and report; undo the exchange of the two factors if they were exchanged."""
    if problem.swapped:
        left, right = jnp.matrix_transpose(right), jnp.matrix_transpose(left)
    return Solved(left, right, report)


def _shift_or(assignment: Assignment, n: int) -> Int[Array, "blocks R"]:
    """Return the indices of shift units; missing units (-1) become n, which is out of range."""
    return jnp.where(assignment.shift < 0, n, assignment.shift)


def _batched(function: Callable, times: int) -> Callable:
    for _ in range(times):
        function = jax.vmap(function)
    return function
