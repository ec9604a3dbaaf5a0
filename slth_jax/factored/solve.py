"""Find the masks of a product's rows; random weights are drawn on the devices."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int, UInt8

from slth_jax import machines
from slth_jax.construction import choices, engine, trellis
from slth_jax.construction.encode import SOURCES
from slth_jax.construction.rules import Rule
from slth_jax.factored import products
from slth_jax.factored.network import LEVELS
from slth_jax.factored.part import Part
from slth_jax.factored.products import Product
from slth_jax.types import Array

# The largest accepted error of a row, as a multiple of scale / 2^(samples - 1).
_TOLERANCE = 32.0
_FEW = 8  # the number of rows that a device solves again at a time


class Problem(NamedTuple):
    """A product, with the settings of the search for its free factor's mask.

    Attributes:
      product: the grouped factor, and the assignment of the hidden units to its columns.
      part: the part to which the product belongs.
      rule: the rule that assigned the hidden units to columns.
      scale: the scale of the free factor. For subset sums, the scale is the largest absolute value
        that an entry of the free factor can have.
      samples: the number of samples per subset sum; it is not used for a band.
    """

    product: Product
    part: Part
    rule: Rule
    scale: float
    samples: int


class Masks(NamedTuple):
    """Packed masks of rows, and the errors of each row."""

    bits: Any  # uint8 [p, bytes]
    squared_error: Any  # float32 [p]
    largest_error: Any  # float32 [p]
    worst_column: Any  # int32 [p], the column of the largest error
    out_of_reach: Any  # int32 [p]


Levels = UInt8[np.ndarray, " p"]
"""The levels of rows' scales, see `network.LEVELS`."""


def rows(
    problem: Problem,
    target: Float[np.ndarray, "p r"],
    start: int,
    mesh: Mesh,
    *,
    levels: Levels | None = None,
) -> Masks:
    """Return the masks of rows ``start, start + 1, ...`` of the free factor.

    If the rule limits the number of re-rolls and leaves an entry with an unusually large error, the
    entry's row is solved again without this limit. Without this step a few such entries would cause
    most of a network's error.

    Args:
      problem: the product whose free factor is masked.
      target: the rows to approximate.
      start: the number of the first row.
      mesh: see `products.mesh`.
      levels: for each row, the index of its scale in `network.LEVELS`; None if all rows have the
        same scale.
    """
    numbers = start + np.arange(len(target))
    levels = np.zeros(len(target), np.uint8) if levels is None else levels
    masks = _in_steps(problem, target, numbers, levels, mesh, products.ROWS)
    search = problem.rule.search
    if search.rerolls is None or problem.part.relu or problem.part.band is not None:
        return masks
    limit = _TOLERANCE * problem.scale * 2.0 ** (1 - problem.samples)
    bad = np.flatnonzero(masks.largest_error > limit)
    if bad.size:
        patient = dataclasses.replace(
            problem.rule, search=dataclasses.replace(search, rerolls=None)
        )
        problem = problem._replace(rule=patient)
        again = _in_steps(problem, target[bad], numbers[bad], levels[bad], mesh, _FEW)
        for old, new in zip(masks, again, strict=True):
            old[bad] = new
    return masks


# The first scale of a row is _OF_LARGEST times the row's largest entry plus _OF_SIZE times the
# row's root mean square. These factors gave the least error at 16 samples on six matrices of
# SmolLM2-135M. With them a fifth of the rows need a coarser scale and are solved again.
_OF_LARGEST, _OF_SIZE = 0.5, 1.5
# The root mean square error of entries within reach, divided by scale / 2^samples; measured on the
# same matrices.
_ERROR = 4.5
# The root mean square error of a band's entries at coarse scales, divided by 2^-bits times the
# standard deviation of a sum of all terms. It was measured as 0.68 to 0.87 on Gaussian entries at 4
# to 6 bits and 2^6 to 2^12 states.
_BAND_ERROR = 0.8
# If a row of a band has an outlier, its scale may be coarser by this number of levels than its root
# mean square requires, that is, up to four times as large.
HEADROOM = 4


def rows_with_scales(
    problem: Problem,
    target: Float[np.ndarray, "p r"],
    start: int,
    mesh: Mesh,
    *,
    levels: Levels | None = None,
    columns: Float[np.ndarray, " r"] | None = None,
) -> tuple[Masks, Levels]:
    """Choose a scale for each row; return the masks of the rows and the levels of their scales.

    The error of a matrix entry is proportional to the scale if a subset sum can reach the entry,
    but at a fine scale large entries cannot be reached. Each row is therefore solved at a fine
    scale first. While the error expected at the next coarser scale is below the row's error, the
    row is solved at that scale too. The better masks are kept. If the matrix entries are subset
    sums, the random weights of a row differ from level to level. If the weights did not change, an
    entry whose samples all have the wrong sign could not be approximated at any scale.

    Args:
      problem: the product whose free factor is masked; `problem.scale` is the scale at level 0, the
        coarsest level.
      target: the rows to approximate.
      start: the number of the first row.
      mesh: see `products.mesh`.
      levels: the levels at which the rows of a band are solved first; None for subset sums.
      columns: the scales of a band's columns; None if all are 1.
    """
    part = problem.part
    if part.band is None:
        first = _OF_LARGEST * np.max(np.abs(target), axis=1) + _OF_SIZE * row_sizes(target)
        levels, drawn = _levels(first / problem.scale), part.rows
        error = _ERROR * 2.0**-problem.samples
    else:
        assert levels is not None
        levels, drawn = levels.copy(), 0
        error = _BAND_ERROR * _terms(part) ** 0.5 * 2.0**-part.band.bits

    def at(trial: Levels, active: Int[np.ndarray, " a"], at_once: int) -> Masks:
        numbers = start + active + drawn * trial.astype(int)
        return _in_steps(problem, target[active], numbers, trial, mesh, at_once)

    active = np.arange(len(target))
    masks = at(levels, active, products.ROWS)
    trial = levels.copy()
    # An entry that is zero has no error, or nearly none.
    entries = np.sum((target != 0) * (1.0 if columns is None else np.square(columns)), axis=1)
    while True:
        coarser = problem.scale * LEVELS[np.maximum(trial[active], 1) - 1]
        promise = entries[active] * np.square(error * coarser)
        active = active[(masks.squared_error[active] > promise) & (trial[active] > 0)]
        if not active.size:
            return masks, levels
        trial[active] -= 1
        again = at(trial[active], active, _FEW)
        better = again.squared_error < masks.squared_error[active]
        chosen = active[better]
        levels[chosen] = trial[chosen]
        for old, new in zip(masks, again, strict=True):
            old[chosen] = new[better]


# The scales that are tried. Each is given as the standard deviation of a sum of L terms divided by
# the root mean square of the target's entries.
_SPREADS = (0.9, 1.05, 1.2, 1.4, 1.65, 2.0, 2.5, 3.2)
_TRIED = 16  # the number of rows, evenly spaced, on which scales are tried


def band_scale(
    problem: Problem,
    target: Float[np.ndarray, "p r"],
    mesh: Mesh,
    *,
    levels: Levels | None = None,
    sizes: Float[np.ndarray, " p"],
    of_most: bool = False,
) -> float:
    """Return the scale of a band's free factor that gives the least error on some rows.

    Args:
      problem: the product; `problem.scale` is not read.
      target: all rows of the matrix.
      mesh: see `products.mesh`.
      levels: the levels of the rows' scales; None if all rows have the same scale.
      sizes: the root mean square of each row after its entries are divided by the columns' scales.
      of_most: if true, the median of the rows' relative errors is minimised, which rows with
        outliers hardly affect; if false, the sum of squared errors is minimised.
    """
    if levels is None:
        levels = np.zeros(len(target), np.uint8)
        size = float(np.sqrt(np.mean(np.square(sizes))))
    else:
        size = float(sizes.max())
    if not size:
        return 1.0
    terms = _terms(problem.part)
    numbers = np.unique(np.linspace(0, len(target) - 1, _TRIED).astype(int))
    errors = {}
    for spread in _SPREADS:
        scale = float(f"{spread * size / terms**0.5:.3g}")  # few digits keep the file short
        trial = problem._replace(scale=scale)
        masks = _in_steps(trial, target[numbers], numbers, levels[numbers], mesh, _TRIED)
        squares = masks.squared_error.astype(np.float64)
        relative = squares / np.maximum(np.square(sizes[numbers]), 1e-30)
        errors[scale] = float(np.median(relative) if of_most else squares.sum())
    return min(errors, key=lambda scale: errors[scale])


def _terms(part: Part) -> float:
    """Return the variance of an entry of a band's product (a sum of L terms) at scale 1."""
    assert part.band is not None
    return min(part.band.window, part.columns) * SOURCES[part.weights][2]


def row_sizes(target: Float[np.ndarray, "p r"]) -> Float[np.ndarray, " p"]:
    """Return the root mean square of the entries of each row."""
    return np.sqrt(np.mean(np.square(target, dtype=np.float64), axis=1))


def levels_of(sizes: Float[np.ndarray, " p"]) -> Levels:
    """Return levels of scales that are nearly proportional to `sizes` (root mean squares)."""
    return _levels(sizes / max(float(sizes.max()), 1e-30))


def _levels(share: Float[np.ndarray, " p"]) -> Levels:
    """Return the levels nearest to scales that are given as fractions of the coarsest scale."""
    # The border between two levels is the mean of their scales. The numbers are negated, since
    # searchsorted needs increasing numbers.
    borders = (LEVELS[1:] + LEVELS[:-1]) / 2
    return np.searchsorted(-borders, -share).astype(np.uint8)


def _in_steps(
    problem: Problem,
    target: np.ndarray,
    numbers: np.ndarray,
    levels: Levels,
    mesh: Mesh,
    at_once: int,
) -> Masks:
    step = at_once * mesh.size
    solve = _program(problem.part.nameless, problem.rule, mesh)
    scales = np.float32(problem.scale) * LEVELS[levels]
    running: list[tuple[Masks, int]] = []
    fetched: list[Masks] = []
    for first in range(0, len(target), step):
        block = target[first : first + step]
        empty = step - len(block)
        padded = np.pad(block, ((0, empty), (0, 0)))
        padded_numbers = np.pad(numbers[first : first + step], (0, empty))
        padded_scales = np.pad(scales[first : first + step], (0, empty))
        running.append((solve(padded_numbers, padded, padded_scales, problem.product), len(block)))
        if len(running) > 1:  # one step runs ahead: devices never wait, and memory stays bounded
            fetched.append(_fetch(*running.pop(0)))
    fetched += [_fetch(*last) for last in running]
    return Masks(*(np.concatenate(blocks) for blocks in zip(*fetched, strict=True)))


def _fetch(masks: Masks, count: int) -> Masks:
    return Masks(*(np.array(x)[:count] for x in masks))


def trace(part: Part, rule: Rule, devices: Sequence[Any]) -> Any:
    """Trace the compiled step of `rows`, which solves `products.ROWS` rows on each device.

    The devices need not be present (see `machines.compile_for`).
    """
    mesh = machines.mesh_of(devices, names=("rows",))
    count = products.ROWS * len(devices)
    by_row = jax.NamedSharding(mesh, jax.P("rows"))
    given = (
        jax.ShapeDtypeStruct(shape, dtype, sharding=by_row)
        for shape, dtype in (
            ((count,), np.int32), ((count, part.columns), np.float32), ((count,), np.float32),
        )
    )  # fmt: skip
    whole = jax.NamedSharding(mesh, jax.P())
    product = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole),
        jax.eval_shape(lambda: products.draw(0, part, 0, rule)),
    )
    solve: Any = _program(part.nameless, rule, mesh)
    return solve.trace(*given, product)


@cache
def _program(part: Part, rule: Rule, mesh: Mesh) -> Callable[..., Masks]:
    """Return the compiled step of `rows`, which all parts of the same shape share."""
    rule = rule.for_relu() if part.relu else rule

    def step(numbers: Array, target: Array, scales: Array, product: Product) -> Masks:
        left = products.left_rows(product.key, numbers, scales, part)  # [p, n]
        if part.band is not None:
            return _walks(left, product.right, target, part.band.bits)
        chex.assert_shape(product.right, (part.units, part.columns))
        chex.assert_shape(target, (left.shape[0], part.columns))
        if part.relu and part.rows_are_inputs:
            left = jax.nn.relu(left)  # inputs are one-hot, so only positive weights pass the ReLU
        assert product.assignment is not None
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
            worst_column=_worst_column(error, part.columns),
            out_of_reach=jnp.sum(beyond, axis=1, dtype=jnp.int32),
        )

    return products.over_rows(step, mesh, 3)


def _walks(
    left: Float[Array, "p n"],
    right: Float[Array, "r M L"],
    target: Float[Array, "p r"],
    bits: int,
) -> Masks:
    """Find the masks of a band's rows as shortest paths (see `construction.trellis`)."""
    p, r = target.shape
    digits = trellis.shortest(left.reshape(p, r, -1), right, target, 1 << bits)
    error = jnp.abs(products.band_entries(left, digits, right) - target)
    return Masks(
        bits=choices.pack(digits, bits),
        squared_error=jnp.sum(jnp.square(error), axis=1),
        largest_error=jnp.max(error, axis=1),
        worst_column=_worst_column(error, r),
        out_of_reach=jnp.zeros(p, jnp.int32),
    )


def _worst_column(error: Float[Array, "p halves_r"], columns: int) -> Int[Array, " p"]:
    """Return each row's column with the largest error; with a ReLU `error` has two per column."""
    return (jnp.argmax(error, axis=1) % columns).astype(jnp.int32)
