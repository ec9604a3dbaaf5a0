"""The engine: two random factors and a target matrix in, masks and a report out.

``target_ij ~ sum_k (left * left_mask)_ik (right * right_mask)_kj`` (Lemmas 4 and 7). A rule deals
the hidden units k to the columns j of `right`, the grouped factor, whose mask is that assignment.
Each entry of the target is then a subset sum over ``left_ik right_kj``, k in group j, and the kept
samples are the mask of `left`, the free factor.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from slth_jax import checks
from slth_jax.construction import search
from slth_jax.construction.rules.deal import Deal, Rule
from slth_jax.construction.search import Rows
from slth_jax.types import Array, ArrayLike


class Report(NamedTuple):
    """What the subset sums behind a pair of masks reached; counts and errors of target entries."""

    num_sums: Array
    out_of_reach: Array  # values beyond the sum of all samples of their sign
    max_error: Array

    def __repr__(self) -> str:
        """Return the numbers in one line, or the shapes of what is batched or not known yet."""
        known = ((name, checks.concrete(value)) for name, value in self._asdict().items())
        shown = (
            f"{name}={getattr(self, name)}"
            if value is None or value.ndim
            else f"{name}={value:.3g}"
            for name, value in known
        )
        return f"Report({', '.join(shown)})"


class Problem(NamedTuple):
    """A matrix to be met by two factors whose hidden units have been dealt."""

    left: Array  # [..., p, n]
    right: Array  # [..., n, r]
    target: Array  # [..., p, r]
    deal: Deal
    rule: Rule
    swapped: bool = False  # the factors were exchanged, to group over the rows of `left`


class Solved(NamedTuple):
    """Masks of the two factors of a problem, and what was reached."""

    left_mask: Array  # bool [..., p, n]
    right_mask: Array  # bool [..., n, r]
    report: Report


def prune(left: Array, right: Array, target: Array, *, rule: Rule) -> Solved:
    """Mask two random matrices so that their product is `target`.

    Args:
      left: `[..., p, n]`, the free factor.
      right: `[..., n, r]`, the grouped factor; a rule may exchange the two.
      target: `[..., p, r]`.
      rule: see `rules.RULES`.

    The hidden width is the place of the last unit that is not all zeros: zeros behind it are
    padding, inside `jit` and `vmap` too, and change no mask.

    Returns:
      Boolean masks of the shapes of `left` and `right`, and a `Report`.
    """
    return solve([product(left, right, target, rule)])[0]


def product(
    left: Array, right: Array, target: Array, rule: Rule, width: ArrayLike | None = None
) -> Problem:
    """Return ``target = left right`` with its units dealt; arguments as in `prune`.

    `width` is the number of hidden units where the caller knows it, one for the whole batch.
    """
    *batch, p, n = left.shape
    chex.assert_shape([right, target], [(*batch, n, None), (*batch, p, right.shape[-1])])
    swapped = rule.either_side and left.shape[-2] < right.shape[-1]
    if swapped:
        left, right, target = (jnp.matrix_transpose(w) for w in (right, left, target))
    depth = left.ndim - 2
    if width is None:
        width = hidden_width(left, right)
    else:
        width = jnp.broadcast_to(jnp.asarray(width), left.shape[:-2])
    deal = _batched(_dealt(rule), depth)(left, right, target, width)
    return Problem(left, right, target, deal, rule, swapped)


def _dealt(rule: Rule):
    return lambda left, right, target, width: rule.deal(right, width, left=left, target=target)


def hidden_width(left: Array, right: Array) -> Array:
    """Return the width of ``left [..., p, n]``, ``right [..., n, r]`` without padding, `[...]`."""
    real = jnp.any(left != 0, axis=-2) | jnp.any(right != 0, axis=-1)
    last = jnp.argmax(jnp.flip(real, axis=-1), axis=-1)
    return jnp.where(jnp.any(real, axis=-1), real.shape[-1] - last, 0)


def solve(problems: Sequence[Problem]) -> list[Solved]:
    """Solve several problems, those of one rule as one batch (one compilation of the solver)."""
    sums = []
    for problem in problems:
        lead = problem.target.ndim - 1
        of_rows = _batched(search.sums, lead - 1)(*problem[:4])
        sums.append(
            jax.tree.map(
                lambda x, lead=lead: x.reshape(math.prod(x.shape[:lead]), *x.shape[lead:]), of_rows
            )
        )
    found: dict[int, Solved] = {}
    for rule in dict.fromkeys(problem.rule for problem in problems):
        here = [i for i, problem in enumerate(problems) if problem.rule == rule]
        columns = [problems[i].target.shape[-1] for i in here]
        rows = search.best([sums[i] for i in here], columns, rule)
        found |= {i: _solved(problems[i], part) for i, part in zip(here, rows, strict=True)}
    return [found[i] for i in range(len(problems))]


def solve_rows(left: Array, right: Array, target: Array, deal: Deal, rule: Rule) -> Rows:
    """Choose what each row of the free factor keeps.

    A row's result does not depend on the other rows or their number, nor on `jit`, `vmap` and
    sharding: rows may be spread over devices, which then work on their own.

    Args:
      left: `[p, n]`, some rows of the free factor.
      right: `[n, r]`, the grouped factor.
      target: `[p, r]`.
      deal: ``rule.deal(right, width)``.
      rule: the rule that dealt.
    """
    n, r = right.shape
    chex.assert_shape([left, target], [(None, n), (left.shape[0], r)])
    chex.assert_axis_dimension(deal.units, 0, r)
    return search.best([search.sums(left, right, target, deal)], [right.shape[1]], rule)[0]


def left_mask(deal: Deal, kept: Array, pattern: Array, n: int) -> Array:
    """Return the mask `[p, n]` of the free factor from what its rows keep (see `Rows`)."""
    p = kept.shape[0]
    bits = [kept.reshape(p, -1), pattern.reshape(p, -1), jnp.zeros((p, 1), bool)]
    unit = jnp.concatenate(
        [jnp.where(deal.filled, deal.units, n).reshape(-1), _unit_or(deal.shift, n).reshape(-1)]
    )
    # The place of each unit's bit; units that nobody has are at the zero behind the last.
    place = jnp.full(n, unit.size).at[unit].set(jnp.arange(unit.size), mode="drop")
    return jnp.concatenate(bits, axis=1)[:, place]


def right_mask(deal: Deal, n: int) -> Array:
    """Return the mask `[n, r]` of the grouped factor: each unit to its column, or its block's."""
    column = jnp.arange(deal.units.shape[0])
    unit = jnp.concatenate(
        [jnp.where(deal.filled, deal.units, n), _unit_or(deal.shift, n)[column // deal.columns]],
        axis=1,
    )
    return jnp.zeros((n, column.size), bool).at[unit, column[:, None]].set(True, mode="drop")


def split_by_sign(deal: Deal, right: Array) -> tuple[Deal, Deal]:
    """Return the units with a positive and with a negative weight to their own column.

    In each half its units come first in every group, so that the empty slots are at the end.
    """
    column = jnp.arange(right.shape[1])[:, None]
    weight = jnp.where(deal.filled, right[deal.units, column], 0)

    def half(own: Array) -> Deal:
        order = jnp.argsort(~own, axis=-1)
        units, filled = (jnp.take_along_axis(x, order, axis=-1) for x in (deal.units, own))
        return deal._replace(units=units, filled=filled)

    return half(weight > 0), half(weight < 0)


def joined(reports: Sequence[Report]) -> Report:
    """Return one report of all."""
    parts: Report = jax.tree.map(lambda *values: jnp.stack(values), *reports)
    return Report(jnp.sum(parts.num_sums), jnp.sum(parts.out_of_reach), jnp.max(parts.max_error))


def _solved(problem: Problem, rows: Rows) -> Solved:
    """Return masks and report; the rows of all matrices of a batch stand in one axis."""
    target, n = problem.target, problem.left.shape[-1]
    report = Report(
        num_sums=jnp.asarray(target.size),
        out_of_reach=jnp.sum(rows.beyond),
        max_error=jnp.max(rows.error),
    )
    kept, pattern = (x.reshape(*target.shape[:-1], *x.shape[1:]) for x in rows[:2])
    lifted = partial(_batched, times=target.ndim - 2)
    of_left = lifted(partial(left_mask, n=n))(problem.deal, kept, pattern)
    of_right = lifted(partial(right_mask, n=n))(problem.deal)
    if problem.swapped:
        of_left, of_right = jnp.matrix_transpose(of_right), jnp.matrix_transpose(of_left)
    return Solved(of_left, of_right, report)


def _unit_or(shift: Array, n: int) -> Array:
    """Return shift units with n, which no unit is, for none."""
    return jnp.where(shift < 0, n, shift)


def _batched(function, times: int):
    for _ in range(times):
        function = jax.vmap(function)
    return function
