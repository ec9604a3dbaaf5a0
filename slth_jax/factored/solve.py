"""The masks of rows of a product: drawn, solved and packed on the devices."""

import dataclasses
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from slth_jax.construction import engine
from slth_jax.construction.rules import Rule
from slth_jax.factored import products
from slth_jax.factored.products import Product
from slth_jax.factored.spec import Part
from slth_jax.types import Array

# The largest error of a row that is accepted, in units of scale / 2^(samples - 1).
_TOLERANCE = 32.0
_FEW = 8  # rows that a device solves again at a time


class Problem(NamedTuple):
    """A product whose free factor is to be masked.

    Attributes:
      product: its grouped factor, with assigned units.
      part: the part that it belongs to.
      rule: the rule that assigned.
      scale: the largest possible entry of the free factor.
      samples: the number of samples per subset sum.
    """

    product: Product
    part: Part
    rule: Rule
    scale: float
    samples: int


class Masks(NamedTuple):
    """Packed masks of rows, and their errors summed over each row."""

    bits: Any  # uint8 [p, n / 8]
    squared_error: Any  # float32 [p]
    largest_error: Any  # float32 [p]
    out_of_reach: Any  # int32 [p]


def rows(problem: Problem, target: Float[np.ndarray, "p r"], start: int, mesh: Mesh) -> Masks:
    """Return the masks of rows ``start, start + 1, ...`` of the free factor.

    If a rule with few re-rolls leaves an entry with an unusually large error, its row is solved
    again with all patterns: a handful of entries makes most of a network's error.

    Args:
      problem: the product.
      target: the rows to approximate.
      start: the number of the first row.
      mesh: see `products.mesh`.
    """
    numbers = start + np.arange(len(target))
    masks = _in_steps(problem, target, numbers, mesh, products.ROWS)
    search = problem.rule.search
    if search.rerolls is None or problem.part.relu:
        return masks
    limit = _TOLERANCE * problem.scale * 2.0 ** (1 - problem.samples)
    bad = np.flatnonzero(masks.largest_error > limit)
    if bad.size:
        patient = dataclasses.replace(
            problem.rule, search=dataclasses.replace(search, rerolls=None)
        )
        again = _in_steps(problem._replace(rule=patient), target[bad], numbers[bad], mesh, _FEW)
        for old, new in zip(masks, again, strict=True):
            old[bad] = new
    return masks


def _in_steps(
    problem: Problem, target: np.ndarray, numbers: np.ndarray, mesh: Mesh, at_once: int
) -> Masks:
    step = at_once * mesh.size
    solve = _program(problem.part.nameless, problem.rule, mesh)
    scale = jnp.float32(problem.scale)
    running: list[tuple[Masks, int]] = []
    fetched: list[Masks] = []
    for first in range(0, len(target), step):
        block = target[first : first + step]
        empty = step - len(block)
        padded = np.pad(block, ((0, empty), (0, 0)))
        padded_numbers = np.pad(numbers[first : first + step], (0, empty))
        running.append((solve(padded_numbers, padded, scale, problem.product), len(block)))
        if len(running) > 1:  # one ahead, so that devices never wait and memory stays bounded
            fetched.append(_fetch(*running.pop(0)))
    fetched += [_fetch(*last) for last in running]
    return Masks(*(np.concatenate(blocks) for blocks in zip(*fetched, strict=True)))


def _fetch(masks: Masks, count: int) -> Masks:
    return Masks(*(np.array(x)[:count] for x in masks))


@cache
def _program(part: Part, rule: Rule, mesh: Mesh) -> Callable[..., Masks]:
    """Return the compiled step for parts of one shape."""
    rule = rule.for_relu() if part.relu else rule

    def step(numbers: Array, target: Array, scale: Array, product: Product) -> Masks:
        left = products.left_rows(product.key, numbers, scale, part.units)  # [p, n]
        chex.assert_shape(product.right, (part.units, part.columns))
        chex.assert_shape(target, (left.shape[0], part.columns))
        if part.relu and part.rows_are_inputs:
            left = jax.nn.relu(left)  # inputs are one-hot: only the positive weights pass
        assignments = product.halves or (product.assignment,)
        solve = partial(engine.solve_rows, left, product.right, target, rule=rule)
        solved = [solve(assignment) for assignment in assignments]
        masks = [
            engine.left_mask(assignment, half.kept, half.pattern, part.units)
            for assignment, half in zip(assignments, solved, strict=True)
        ]
        mask = masks[0] if len(masks) == 1 else masks[0] | masks[1]
        error = jnp.concatenate([half.error for half in solved], axis=1)
        beyond = jnp.concatenate([half.beyond for half in solved], axis=1)
        return Masks(
            bits=jnp.packbits(mask, axis=-1),
            squared_error=jnp.sum(jnp.square(error), axis=1) / len(solved),
            largest_error=jnp.max(error, axis=1),
            out_of_reach=jnp.sum(beyond, axis=1, dtype=jnp.int32),
        )

    return products.over_rows(step, mesh, 2)
