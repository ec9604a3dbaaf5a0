"""The entries of target matrices as subset sums, and kept samples back as masks of two factors."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from slth_jax import subset_sum
from slth_jax.construction.grouping import Groups, deal, split_by_sign
from slth_jax.types import Array, ArrayLike


class Report(NamedTuple):
    """What the subset sums behind a pair of masks reached; counts and errors of target entries."""

    num_sums: Array
    out_of_reach: Array  # values beyond the sum of all samples of their sign
    num_optimal: Array  # proven closest, see subset_sum.Solution
    max_error: Array
    mean_error: Array


class Problem(NamedTuple):
    """A matrix to be met: the samples of its entries, and how kept samples become masks."""

    samples: Array  # [..., p, r, slots]
    target: Array  # [..., p, r]
    groups: Groups
    swapped: bool  # the factors were exchanged, to group over the rows of `left`


class Solved(NamedTuple):
    """Masks of the two factors of a problem, and what was reached."""

    left_mask: Array  # [..., p, n]
    right_mask: Array  # [..., n, r]
    report: Report


def product_problem(
    left: Array, right: Array, target: Array, width: ArrayLike, construction: str
) -> Problem:
    """Return ``target = left right`` as subset sums (Lemma 4); shapes as in `prune_product`."""
    swapped = construction == "reach" and left.shape[-2] < right.shape[-1]
    if swapped:
        left, right, target = turn(right), turn(left), turn(target)
    depth = left.ndim - 2
    groups = _batched(partial(deal, width=width, construction=construction), depth)(right)
    return Problem(_batched(_samples, depth)(left, right, groups), target, groups, swapped)


def relu_problems(
    w1: Array, w2: Array, target: Array, width: ArrayLike, construction: str
) -> tuple[Problem, Problem]:
    """Return ``target x = w2 relu(w1 x)`` as subset sums: for positive and for negative x."""
    groups = deal(w1, width=width, construction=construction)
    plus, minus = (
        Problem(_samples(w2, w1, half), target, half, False) for half in split_by_sign(groups, w1)
    )
    return plus, minus


def solve(problems: Sequence[Problem]) -> list[Solved]:
    """Solve the entries of all problems as one batch.

    One solver for all, since it is what takes long to compile; problems with fewer slots are
    padded with zeros, which change none of its results.
    """
    slots = max(problem.samples.shape[-1] for problem in problems)
    samples = jnp.concatenate(
        [_pad_last(problem.samples, slots).reshape(-1, slots) for problem in problems]
    )
    value = jnp.concatenate([problem.target.reshape(-1) for problem in problems])
    # Said, so that a source has the same masks however wide the slots are padded.
    solution = subset_sum.solve(samples, value, max_exact=subset_sum.PART)
    most = jnp.sum(jnp.maximum(samples, 0), axis=-1)
    least = jnp.sum(jnp.minimum(samples, 0), axis=-1)
    beyond = (value > most) | (value < least)

    solved, start = [], 0
    for problem in problems:
        here = slice(start, start + problem.target.size)
        start += problem.target.size
        report = Report(
            num_sums=jnp.asarray(problem.target.size),
            out_of_reach=jnp.sum(beyond[here]),
            num_optimal=jnp.sum(solution.optimal[here]),
            max_error=jnp.max(solution.error[here]),
            mean_error=jnp.mean(solution.error[here]),
        )
        kept = solution.mask[here, : problem.samples.shape[-1]].reshape(problem.samples.shape)
        left_mask = _batched(_scatter, kept.ndim - 3)(kept, problem.groups)
        right_mask = problem.groups.member
        if problem.swapped:
            left_mask, right_mask = turn(right_mask), turn(left_mask)
        solved.append(Solved(left_mask, right_mask, report))
    return solved


def turn(matrix: Array) -> Array:
    """Exchange the last two axes."""
    return jnp.swapaxes(matrix, -1, -2)


def _samples(left: Array, right: Array, groups: Groups) -> Array:
    """Return the products `[p, r, slots]` that entry (i, j) may sum; zeros in empty slots."""
    columns = jnp.arange(right.shape[1])[:, None]
    factor = jnp.where(groups.filled, right[groups.units, columns], 0)  # [r, slots]
    return left[:, groups.units] * factor[None]


def _scatter(kept: Array, groups: Groups) -> Array:
    """Return the mask `[p, n]` of the left factor from kept samples `[p, r, slots]`."""
    return kept[:, groups.group, groups.slot] & jnp.any(groups.member, axis=-1)[None]


def _pad_last(array: Array, size: int) -> Array:
    return jnp.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, size - array.shape[-1])])


def _batched(function, times: int):
    for _ in range(times):
        function = jax.vmap(function)
    return function
