"""The random factors of a part, drawn row by row, and what masks make of them.

A part's weights are defined once and need never be held together: product g of the part has its own
key; row i of its free factor `left` is drawn from ``fold_in`` of i, so any rows can be drawn alone,
on any device, in any order.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh

from slth_jax.construction import engine, search
from slth_jax.construction.rules import Assignment, Rule
from slth_jax.sources.recipe import Part, Recipe
from slth_jax.types import Array, Key

ROWS = 64  # rows of a free factor that a device works on at a time


class Product(NamedTuple):
    """One product of a part: its key, the grouped factor and who serves whom there."""

    key: Key
    right: Array  # [n, r]
    assignment: Assignment
    halves: tuple[Assignment, Assignment] | None  # units by the sign of their weight, for a ReLU


def part_key(seed: int, part: Part, recipe: Recipe) -> Key:
    """Return the key of a part: folded from its place, so that parts do not depend on others."""
    names = [one.name for one in dataclasses.replace(recipe, keep=()).parts]
    key = jax.random.key(seed, impl="threefry2x32")
    return jax.random.fold_in(key, names.index(part.name))


def product(key: Key, part: Part, g: int, rule: Rule) -> Product:
    """Draw the grouped factor of product `g` with entries ``U[-1, 1]`` and deal its units."""
    # Over inputs that may have either sign, a ReLU needs units of either sign for each.
    signs = part.relu and not part.rows_are_inputs
    if part.relu:
        rule = rule.for_relu()
    shape = (part.units, part.columns)
    own = jax.random.fold_in(key, g)
    right, assignment, halves = _product(own, shape, rule, signs)
    return Product(own, right, assignment, halves)


@partial(jax.jit, static_argnums=(1, 2, 3))
def _product(key: Key, shape: tuple[int, int], rule: Rule, signs: bool):
    right = _uniform(jax.random.fold_in(key, 1), shape)
    assignment = rule.assignment(right, shape[0])
    if not signs:
        return right, assignment, None
    # As many of either sign: the few that a column has beyond its share are not used.
    share = shape[0] // shape[1] // 2
    halves = tuple(
        half._replace(units=half.units[:, :share], filled=half.filled[:, :share])
        for half in engine.split_by_sign(assignment, right)
    )
    return right, assignment, halves


def left_rows(key: Key, rows: Array, scale: Array, units: int) -> Array:
    """Draw rows `[p, n]` of the free factor with entries ``U[-scale, scale]``."""
    keys = jax.vmap(partial(jax.random.fold_in, jax.random.fold_in(key, 0)))(rows)
    return scale * jax.vmap(lambda k: _uniform(k, (units,)))(keys)


_left_rows = jax.jit(left_rows, static_argnums=3)


def _uniform(key: Key, shape: tuple[int, ...]) -> Array:
    # 2u - 1 is exact for JAX's u, so compiled and eager draws agree to the bit.
    return 2 * jax.random.uniform(key, shape, jnp.float32) - 1


def entries(left: Array, mask: Array, product: Product, part: Part) -> Array:
    """Return the rows `[p, r]` of the masked product, each a sum over the units that it keeps.

    With a ReLU between the factors: of the product that acts on positive inputs.
    """
    assignment = product.assignment if product.halves is None else product.halves[0]
    if part.relu and part.rows_are_inputs:
        left = jax.nn.relu(left)
    kept = jnp.where(mask, left, 0)
    found = search.sums(kept, product.right, jnp.zeros((left.shape[0], part.columns)), assignment)
    total = jnp.sum(found.samples, axis=-1) + jnp.sum(found.shifts, axis=2)
    return total.reshape(left.shape[0], -1)[:, : part.columns]


def masked_left(product: Product, part: Part, scale, bits: np.ndarray) -> np.ndarray:
    """Return the masked free factor `[p, n]` of packed masks."""
    rows = jnp.arange(part.rows)
    left = _left_rows(product.key, rows, jnp.float32(scale), part.units)
    mask = np.unpackbits(bits, count=part.rows * part.units).reshape(part.rows, part.units)
    return np.where(mask.astype(bool), np.asarray(left), np.float32(0))


def masked_right(product: Product, part: Part) -> np.ndarray:
    """Return the masked grouped factor `[n, r]`."""
    mask = engine.right_mask(product.assignment, part.units)
    return np.asarray(jnp.where(mask, product.right, 0))


def fingerprint(product: Product, scale: float, part: Part) -> str:
    """Return a SHA-256 that other random numbers would not have.

    Of the grouped factor, and of the first and last row of the free one.
    """
    ends = jnp.array([0, part.rows - 1])
    left = _left_rows(product.key, ends, jnp.float32(scale), part.units)
    digest = hashlib.sha256(np.asarray(product.right).tobytes())
    digest.update(np.asarray(left).tobytes())
    return digest.hexdigest()


def mesh() -> Mesh:
    """Return a mesh of one axis, 'rows', over the devices of this process."""
    devices = jax.local_devices()
    return jax.make_mesh((len(devices),), ("rows",), (AxisType.Auto,), devices=devices)


def over_rows(function: Callable, mesh: Mesh, num_rowwise: int) -> Callable:
    """Return `function` compiled, its first `num_rowwise` arguments and all results by rows.

    Every device runs the same program on `ROWS` rows, so results do not depend on their number.
    """
    rows, whole = jax.P("rows"), jax.P()

    def by_shard(*arguments):
        count = len(arguments)
        specs = (rows,) * num_rowwise + (whole,) * (count - num_rowwise)
        mapped = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=rows, check_vma=False)
        return mapped(*arguments)

    return jax.jit(by_shard)


def part_entries(
    recipe: Recipe, part: Part, seed: int, scales: Sequence[float], bits: np.ndarray, mesh: Mesh
) -> np.ndarray:
    """Return the entries `[count, rows, columns]` of a part's masked products.

    Args:
      recipe, part, seed: the source.
      scales: of each product's free factor.
      bits: packed masks of the free factors, uint8, `count * rows * units / 8` of them.
      mesh: see `mesh`.
    """
    step = ROWS * mesh.size
    key = part_key(seed, part, recipe)
    packed = bits.reshape(part.count, part.rows, part.units // 8)
    # Without its name, so that the parts of all blocks share a program.
    compute = _entries_program(dataclasses.replace(part, name=""), mesh)
    found = np.empty((part.count, part.rows, part.columns), np.float32)
    for g in range(part.count):
        one = product(key, part, g, recipe.construction)
        for first in range(0, part.rows, step):
            some = packed[g, first : first + step]
            padded = np.pad(some, ((0, step - len(some)), (0, 0)))
            numbers = first + np.arange(step)
            got = compute(numbers, padded, jnp.float32(scales[g]), one)
            found[g, first : first + step] = np.asarray(got)[: len(some)]
    return found


@cache
def _entries_program(part: Part, mesh: Mesh) -> Callable[..., Array]:
    def step(numbers: Array, packed: Array, scale: Array, one: Product) -> Array:
        left = left_rows(one.key, numbers, scale, part.units)
        mask = jnp.unpackbits(packed, axis=-1).astype(bool)
        return entries(left, mask, one, part)

    return over_rows(step, mesh, 2)
