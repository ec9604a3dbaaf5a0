"""Draw the random factors of a part row by row, and compute the entries of masked products.

A part's weights need never be in memory all at once. Every product g of the part has a key, and row
i of the free factor `left` is drawn after folding i into this key. Therefore any row can be drawn
alone, on any device, in any order.

The grouped factor of a band has weights inside the band only. Diagonal t of the band contains, for
each unit, the weight to column j + t, where j is the unit's first column. Each diagonal is drawn
after folding t into the key.

The letters in shapes are: p rows of a free factor, r columns of the grouped factor, n hidden units.
In a band M units start at each column, and each unit has weights to L consecutive columns.
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

from slth_jax import initializers, wheels
from slth_jax.construction import choices, engine, search
from slth_jax.construction.encode import SOURCES
from slth_jax.construction.rules import Assignment, Rule
from slth_jax.factored.network import Network
from slth_jax.factored.part import Part
from slth_jax.types import Array, Key

ROWS = 64  # the number of rows of a free factor that a device solves at a time


class Product(NamedTuple):
    """A product of a part: its random key, grouped factor, and assignment of units to columns."""

    key: Key
    right: Float[Array, "n r"] | Float[Array, "r M L"]  # `[r, M, L]` for a band
    assignment: Assignment | None  # None for a band
    halves: tuple[Assignment, Assignment] | None  # units by the sign of their weight, for a ReLU


def draw(
    seed: int,
    part: Part,
    g: int,
    rule: Rule,
    columns: Float[np.ndarray, " r"] | None = None,
) -> Product:
    """Draw the grouped factor of product `g` and assign its hidden units to columns.

    Entries are ``U[-1, 1]`` except for bands. The columns of a band are multiplied by the scales
    `columns`.
    """
    # If the inputs of a ReLU may have either sign, units of either sign are needed.
    signs = part.relu and not part.rows_are_inputs
    if part.relu:
        rule = rule.for_relu()
    key = product_key(seed, part, g)
    if part.band is not None:
        right = _right(key, part.nameless)  # [r, M, L], by the column at which units start
        if columns is not None:
            ends = np.arange(part.columns)[:, None] + np.arange(right.shape[2])
            right = right * columns[ends % part.columns][:, None]
        return Product(key, right, None, None)
    return Product(key, *_grouped(key, (part.units, part.columns), rule, signs))


def product_key(seed: int, part: Part, g: int) -> Key:
    """Return the random key of product `g` of a part."""
    key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), part.index)
    return jax.random.fold_in(key, g)


@partial(jax.jit, static_argnums=(1, 2, 3))
def _grouped(
    key: Key, shape: tuple[int, int], rule: Rule, signs: bool
) -> tuple[Array, Assignment, tuple[Assignment, Assignment] | None]:
    n, r = shape
    right = initializers.uniform(jax.random.fold_in(key, 1), shape, jnp.float32)
    assignment = rule.assignment(right, n)
    if not signs:
        return right, assignment, None
    # Both signs get the same number of units; a column's units beyond this number are not used.
    share = n // r // 2
    positive, negative = (
        half._replace(units=half.units[:, :share], filled=half.filled[:, :share])
        for half in engine.split_by_sign(assignment, right)
    )
    return right, assignment, (positive, negative)


@partial(jax.jit, static_argnums=1)
def _right(key: Key, part: Part) -> Float[Array, "..."]:
    """Draw the grouped factor ``[n, r]`` or, for a band, the weights ``[r, M, L]`` inside it."""
    key = jax.random.fold_in(key, 1)
    if part.band is None:
        return initializers.uniform(key, (part.units, part.columns), jnp.float32)
    keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(_window(part)))
    draw = SOURCES[part.weights][1]
    shape = part.columns, 1 << part.band.bits
    return jnp.moveaxis(jax.vmap(lambda k: draw(k, shape, jnp.float32))(keys), 0, -1)


def _window(part: Part) -> int:
    assert part.band is not None
    return min(part.band.window, part.columns)


def left_rows(
    key: Key, rows: Int[Array, " p"], scales: Float[Array, " p"], part: Part
) -> Float[Array, "p n"]:
    """Draw rows of the free factor, ``U[-scale, scale]`` except for bands."""
    keys = jax.vmap(partial(jax.random.fold_in, jax.random.fold_in(key, 0)))(rows)
    draw = initializers.uniform if part.band is None else SOURCES[part.weights][0]
    return scales[:, None] * jax.vmap(lambda row_key: draw(row_key, (part.units,), jnp.float32))(
        keys
    )


_left_rows = jax.jit(left_rows, static_argnums=3)


def band_entries(
    left: Float[Array, "p n"], digits: Int[Array, "p r"], right: Float[Array, "r M L"]
) -> Float[Array, "p r"]:
    """Return rows of a band's masked product; each entry sums L terms (`construction.trellis`)."""
    r, m, window = right.shape
    p = left.shape[0]
    left = jnp.take_along_axis(left.reshape(p, r, m), digits[..., None], axis=-1)  # [p, r, 1]
    terms = left * right[jnp.arange(r)[None], digits]  # [p, r, L], by the units' first column
    total = terms[..., 0]
    for t in range(1, window):
        total = total + jnp.roll(terms[..., t], t, axis=1)
    return total


def entries(
    left: Float[Array, "p n"], mask: Bool[Array, "p n"], product: Product, part: Part
) -> Float[Array, "p r"]:
    """Return rows of the masked product; each row is a sum over the units that its mask keeps.

    If a ReLU stands between the factors, the function returns the rows that apply to positive
    inputs.
    """
    assignment = product.assignment if product.halves is None else product.halves[0]
    assert assignment is not None
    if part.relu and part.rows_are_inputs:
        left = jax.nn.relu(left)
    kept = jnp.where(mask, left, 0)
    p = left.shape[0]
    sums = search.sums(kept, product.right, jnp.zeros((p, part.columns)), assignment)
    total = jnp.sum(sums.samples, axis=-1) + jnp.sum(sums.shifts, axis=2)  # [p, blocks, c]
    return total.reshape(p, -1)[:, : part.columns]


def masked_left(
    product: Product,
    part: Part,
    numbers: Int[np.ndarray, " p"],
    scales: Float[np.ndarray, " p"],
    bits: UInt8[np.ndarray, " bytes"],
) -> Float[np.ndarray, "p n"]:
    """Return the masked free factor; `numbers` and `scales` of rows come from `Network`."""
    left = _left_rows(product.key, numbers, scales, part.nameless)
    packed = bits.reshape(part.rows, -1)
    if part.band is None:
        mask = np.unpackbits(packed, axis=-1).astype(bool)
    else:
        digits = choices.unpack(packed, part.columns, part.band.bits)
        mask = np.asarray(choices.mask(digits, part.band.bits))
    return np.where(mask, np.asarray(left), np.float32(0))


def masked_right(product: Product, part: Part) -> Float[np.ndarray, "n r"]:
    """Return the masked grouped factor of a product."""
    if product.assignment is not None:
        mask = engine.right_mask(product.assignment, part.units)
        return np.asarray(jnp.where(mask, product.right, 0))
    r, m, window = product.right.shape
    right = np.zeros((r, m, r), np.float32)
    column = np.arange(r)
    for t in range(window):
        right[column, :, (column + t) % r] = product.right[:, :, t]
    return right.reshape(r * m, r)


def fingerprint(key: Key, part: Part, scale: float) -> str:
    """Return a SHA-256 of the grouped factor and of the free factor's first and last row.

    `key` is the random key of the product (see `product_key`).
    """
    ends = jnp.array([0, part.rows - 1])
    left = _left_rows(key, ends, jnp.full(2, scale, jnp.float32), part.nameless)
    digest = hashlib.sha256(np.asarray(_right(key, part.nameless)).tobytes())
    digest.update(np.asarray(left).tobytes())
    return digest.hexdigest()


def mesh() -> Mesh:
    """Return a mesh of one axis, 'rows', over the devices of this process."""
    wheels.warn_if_unused()
    devices = jax.local_devices()
    return jax.make_mesh((len(devices),), ("rows",), (AxisType.Auto,), devices=devices)


def over_rows(function: Callable, mesh: Mesh, num_rowwise: int) -> Callable:
    """Compile `function` to run on all devices of a mesh, each of which takes a part of the rows.

    The first `num_rowwise` arguments and all results are split by rows. Every device runs the same
    program on its rows, so results do not depend on the number of devices.
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
      network: the random network, which has the spec, the seed and the scales.
      part: a random part of the network.
      bits: packed masks of the free factors, `Part.num_bytes` bytes.
      mesh: see `mesh`.
    """
    step = ROWS * mesh.size
    packed = bits.reshape(part.count, part.rows, -1)
    compute = _entries_program(part.nameless, mesh)
    result = np.empty((part.count, part.rows, part.columns), np.float32)
    for g in range(part.count):
        scales, keys = network.row_scales(part, g), network.row_numbers(part, g)
        columns = network.column_scales(part, g)
        product = draw(network.seed, part, g, network.spec.rule(part), columns)
        for first in range(0, part.rows, step):
            block = packed[g, first : first + step]
            padded = np.pad(block, ((0, step - len(block)), (0, 0)))
            at = np.minimum(first + np.arange(step), part.rows - 1)
            rows = compute(keys[at], padded, scales[at], product)
            result[g, first : first + step] = np.asarray(rows)[: len(block)]
    return result


@cache
def _entries_program(part: Part, mesh: Mesh) -> Callable[..., Array]:
    def step(numbers: Array, packed: Array, scales: Array, product: Product) -> Array:
        left = left_rows(product.key, numbers, scales, part)
        if part.band is not None:
            digits = choices.unpack(packed, part.columns, part.band.bits)
            return band_entries(left, digits, product.right)
        mask = jnp.unpackbits(packed, axis=-1).astype(bool)
        return entries(left, mask, product, part)

    return over_rows(step, mesh, 3)
