"""The random factors of a part, drawn row by row, and the matrices that masks make of them.

A part's weights are defined without being held together: product g of the part has its own key,
and row i of its free factor `left` is drawn from ``fold_in`` of i, so any rows can be drawn alone,
on any device, in any order.

Letters in shapes: p rows of a free factor, r columns of the grouped factor, n hidden units.
"""

import hashlib
from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh
from jaxtyping import Bool, Float, Int, UInt8

from slth_jax.construction import engine, search
from slth_jax.construction.rules import Assignment, Rule
from slth_jax.factored.spec import Network, Part
from slth_jax.types import Array, Key

ROWS = 64  # rows of a free factor that a device works on at a time


class Product(NamedTuple):
    """A product of a part: its key, the grouped factor and the assignment of its units."""

    key: Key
    right: Float[Array, "n r"]
    assignment: Assignment
    halves: tuple[Assignment, Assignment] | None  # units by the sign of their weight, for a ReLU


def draw(seed: int, part: Part, g: int, rule: Rule) -> Product:
    """Draw the grouped factor of product `g` with entries ``U[-1, 1]`` and assign its units."""
    # Inputs of a ReLU that may have either sign need units of either sign.
    signs = part.relu and not part.rows_are_inputs
    if part.relu:
        rule = rule.for_relu()
    key = product_key(seed, part, g)
    return Product(key, *_grouped(key, (part.units, part.columns), rule, signs))


def product_key(seed: int, part: Part, g: int) -> Key:
    """Return the key of product `g` of a part."""
    key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), part.index)
    return jax.random.fold_in(key, g)


@partial(jax.jit, static_argnums=(1, 2, 3))
def _grouped(
    key: Key, shape: tuple[int, int], rule: Rule, signs: bool
) -> tuple[Array, Assignment, tuple[Assignment, Assignment] | None]:
    n, r = shape
    right = _right(key, shape)
    assignment = rule.assignment(right, n)
    if not signs:
        return right, assignment, None
    # Equally many of either sign: the few units that a column has beyond its share are not used.
    share = n // r // 2
    positive, negative = (
        half._replace(units=half.units[:, :share], filled=half.filled[:, :share])
        for half in engine.split_by_sign(assignment, right)
    )
    return right, assignment, (positive, negative)


@partial(jax.jit, static_argnums=1)
def _right(key: Key, shape: tuple[int, int]) -> Float[Array, "n r"]:
    return _uniform(jax.random.fold_in(key, 1), shape)


def left_rows(
    key: Key, rows: Int[Array, " p"], scale: Float[Array, ""], units: int
) -> Float[Array, "p n"]:
    """Draw rows of the free factor with entries ``U[-scale, scale]``."""
    keys = jax.vmap(partial(jax.random.fold_in, jax.random.fold_in(key, 0)))(rows)
    return scale * jax.vmap(lambda row_key: _uniform(row_key, (units,)))(keys)


_left_rows = jax.jit(left_rows, static_argnums=3)


def _uniform(key: Key, shape: tuple[int, ...]) -> Array:
    # 2u - 1 is exact for JAX's u, so compiled and eager draws agree to the bit.
    return 2 * jax.random.uniform(key, shape, jnp.float32) - 1


def entries(
    left: Float[Array, "p n"], mask: Bool[Array, "p n"], product: Product, part: Part
) -> Float[Array, "p r"]:
    """Return rows of the masked product, each a sum over the units that it keeps.

    With a ReLU between the factors: rows of the product that acts on positive inputs.
    """
    assignment = product.assignment if product.halves is None else product.halves[0]
    if part.relu and part.rows_are_inputs:
        left = jax.nn.relu(left)
    kept = jnp.where(mask, left, 0)
    p = left.shape[0]
    sums = search.sums(kept, product.right, jnp.zeros((p, part.columns)), assignment)
    total = jnp.sum(sums.samples, axis=-1) + jnp.sum(sums.shifts, axis=2)  # [p, blocks, c]
    return total.reshape(p, -1)[:, : part.columns]


def masked_left(
    product: Product, part: Part, scale: float, bits: UInt8[np.ndarray, " bytes"]
) -> Float[np.ndarray, "p n"]:
    """Return the masked free factor of packed masks."""
    left = _left_rows(product.key, jnp.arange(part.rows), jnp.float32(scale), part.units)
    mask = np.unpackbits(bits, count=part.rows * part.units).reshape(part.rows, part.units)
    return np.where(mask.astype(bool), np.asarray(left), np.float32(0))


def masked_right(product: Product, part: Part) -> Float[np.ndarray, "n r"]:
    """Return the masked grouped factor."""
    mask = engine.right_mask(product.assignment, part.units)
    return np.asarray(jnp.where(mask, product.right, 0))


def fingerprint(key: Key, part: Part, scale: float) -> str:
    """Return the SHA-256 of the grouped factor and the first and last row of the free factor.

    `key` is the product's, see `product_key`.
    """
    ends = jnp.array([0, part.rows - 1])
    left = _left_rows(key, ends, jnp.float32(scale), part.units)
    digest = hashlib.sha256(np.asarray(_right(key, (part.units, part.columns))).tobytes())
    digest.update(np.asarray(left).tobytes())
    return digest.hexdigest()


def mesh() -> Mesh:
    """Return a mesh of one axis, 'rows', over the devices of this process."""
    devices = jax.local_devices()
    return jax.make_mesh((len(devices),), ("rows",), (AxisType.Auto,), devices=devices)


def over_rows(function: Callable, mesh: Mesh, num_rowwise: int) -> Callable:
    """Return `function` compiled; its first `num_rowwise` arguments and all results are by rows.

    Every device runs the same program on its rows, so results do not depend on their number.
    """
    rows, whole = jax.P("rows"), jax.P()

    def by_shard(*arguments):
        count = len(arguments)
        specs = (rows,) * num_rowwise + (whole,) * (count - num_rowwise)
        mapped = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=rows, check_vma=False)
        return mapped(*arguments)

    return jax.jit(by_shard)


def part_entries(
    network: Network, part: Part, bits: UInt8[np.ndarray, " bytes"], mesh: Mesh
) -> Float[np.ndarray, "count p r"]:
    """Return the entries of a part's masked products.

    Args:
      network: the spec, seed and scales.
      part: a random part of it.
      bits: packed masks of the free factors, ``count rows units / 8`` bytes.
      mesh: see `mesh`.
    """
    step = ROWS * mesh.size
    packed = bits.reshape(part.count, part.rows, part.units // 8)
    compute = _entries_program(part.nameless, mesh)
    result = np.empty((part.count, part.rows, part.columns), np.float32)
    for g, scale in enumerate(network.scales[part.name]):
        product = draw(network.seed, part, g, network.spec.rule(part))
        for first in range(0, part.rows, step):
            block = packed[g, first : first + step]
            padded = np.pad(block, ((0, step - len(block)), (0, 0)))
            rows = compute(first + np.arange(step), padded, jnp.float32(scale), product)
            result[g, first : first + step] = np.asarray(rows)[: len(block)]
    return result


@cache
def _entries_program(part: Part, mesh: Mesh) -> Callable[..., Array]:
    def step(numbers: Array, packed: Array, scale: Array, product: Product) -> Array:
        left = left_rows(product.key, numbers, scale, part.units)
        mask = jnp.unpackbits(packed, axis=-1).astype(bool)
        return entries(left, mask, product, part)

    return over_rows(step, mesh, 2)
