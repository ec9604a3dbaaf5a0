"""The masks of some rows of one product: drawn, solved and packed on the devices."""

import dataclasses
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from slth_jax.construction import engine
from slth_jax.construction.rules import Rule
from slth_jax.sources import products
from slth_jax.sources.products import Product
from slth_jax.sources.recipe import Part
from slth_jax.types import Array

# Largest error of a row that is let pass, in units of scale / 2^(samples - 1).
_TOLERANCE = 32.0
_FEW = 8  # rows that a device solves again at a time


class Found(NamedTuple):
    """Packed masks of rows `[p, n / 8]` and what they reach, summed over each row."""

    bits: Any
    squared_error: Any
    largest_error: Any
    out_of_reach: Any


def rows(
    product: Product, part: Part, rule: Rule, target: np.ndarray, start: int, scale: float,
    samples: int, mesh: Mesh,
) -> Found:  # fmt: skip
    """Return the masks of rows ``start, start + 1, ...`` of the free factor.

    Rows that a rule of few re-rolls leaves with an entry far beyond what so many samples can do are
    solved again with all that it has: a handful of entries makes most of a network's error.

    Args:
      product: as `sources.products.product` draws it.
      part: what it is a product of.
      rule: that dealt.
      target: `[p, r]`, the rows to meet.
      start: the number of the first of them.
      scale: of the free factor's entries.
      samples: of each subset sum.
      mesh: see `products.mesh`.
    """
    numbers = start + np.arange(len(target))
    found = _in_steps(product, part, rule, target, numbers, scale, mesh, products.ROWS)
    if rule.search.rerolls is None or part.relu:
        return found
    bad = np.flatnonzero(found.largest_error > _TOLERANCE * scale * 2.0 ** (1 - samples))
    if bad.size:
        patient = dataclasses.replace(rule, search=dataclasses.replace(rule.search, rerolls=None))
        again = _in_steps(product, part, patient, target[bad], numbers[bad], scale, mesh, _FEW)
        for old, new in zip(found, again, strict=True):
            old[bad] = new
    return found


def _in_steps(
    product: Product, part: Part, rule: Rule, target: np.ndarray, numbers: np.ndarray,
    scale: float, mesh: Mesh, at_once: int,
) -> Found:  # fmt: skip
    step = at_once * mesh.size
    solve = _program(part.units, part.relu, part.rows_are_inputs, rule, mesh)
    running: list[tuple[Found, int]] = []
    pieces: list[Found] = []
    for first in range(0, len(target), step):
        block, own = target[first : first + step], numbers[first : first + step]
        empty = step - len(block)
        padded = np.pad(block, ((0, empty), (0, 0))), np.pad(own, (0, empty))
        running.append((solve(padded[1], padded[0], jnp.float32(scale), product), len(block)))
        if len(running) > 1:  # one ahead, so that devices never wait and memory stays bounded
            pieces.append(_fetch(*running.pop(0)))
    pieces += [_fetch(*one) for one in running]
    return Found(*(np.concatenate(parts) for parts in zip(*pieces, strict=True)))


def _fetch(found: Found, count: int) -> Found:
    return Found(*(np.asarray(x)[:count] for x in found))


@cache
def _program(
    units: int, relu: bool, rows_are_inputs: bool, rule: Rule, mesh: Mesh
) -> Callable[..., Found]:
    """Return the compiled step; JAX compiles it once for each number of columns."""
    rule = rule.for_relu() if relu else rule

    def step(numbers: Array, target: Array, scale: Array, product: Product) -> Found:
        left = products.left_rows(product.key, numbers, scale, units)
        solve = partial(engine.solve_rows, target=target, rule=rule)
        if product.halves is None:
            # Inputs are one-hot, so what a ReLU lets through is all that matters.
            passed = jax.nn.relu(left) if relu and rows_are_inputs else left
            found = [solve(passed, product.right, assignment=product.assignment)]
            masks = [engine.left_mask(product.assignment, found[0].kept, found[0].pattern, units)]
        else:
            found = [solve(left, product.right, assignment=half) for half in product.halves]
            masks = [
                engine.left_mask(half, one.kept, one.pattern, units)
                for half, one in zip(product.halves, found, strict=True)
            ]
        mask = masks[0] if len(masks) == 1 else masks[0] | masks[1]
        error = jnp.concatenate([one.error for one in found], axis=1)
        beyond = jnp.concatenate([one.beyond for one in found], axis=1)
        return Found(
            bits=jnp.packbits(mask, axis=-1),
            squared_error=jnp.sum(jnp.square(error), axis=1) / len(found),
            largest_error=jnp.max(error, axis=1),
            out_of_reach=jnp.sum(beyond, axis=1, dtype=jnp.int32),
        )

    return products.over_rows(step, mesh, 2)
