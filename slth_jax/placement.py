"""Distribute the arrays of many runs over a mesh of devices.

A mesh may have the axes 'run' (many runs under one vmap), 'data' (the rows of a batch) and 'model'
(the last axis of parameters, scores and optimiser moments). GSPMD, the partitioner of XLA, divides
the program along these axes. The threshold of a mask is found by counting scores, not by sorting
them, so sharded scores are not moved between devices.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding

from slth_jax.types import PyTree


def mesh_of_all(runs: int, rows: int, devices: Sequence[Any] | None = None) -> Mesh:
    """Return a mesh that splits all devices over runs first, then over rows, then over 'model'.

    Args:
      runs: the number of runs.
      rows: the number of batch rows that are computed together.
      devices: the devices to use; None for all devices of all processes.
    """
    count = jax.device_count() if devices is None else len(devices)
    along_runs = math.gcd(runs, count)
    along_rows = math.gcd(rows, count // along_runs)
    return mesh((along_runs, along_rows, count // along_runs // along_rows), devices)


def mesh(sizes: tuple[int, int, int], devices: Sequence[Any] | None = None) -> Mesh:
    """Return a mesh of `devices` (None: all) with these `sizes` along 'run', 'data', 'model'."""
    kinds = (AxisType.Auto,) * 3
    return jax.make_mesh(sizes, ("run", "data", "model"), axis_types=kinds, devices=devices)


def of(tree: PyTree, mesh: Mesh, *, runs: bool = False) -> PyTree:
    """Return a sharding for each leaf of a run's state.

    The last axis of a leaf is split over the mesh axis 'model' if its size is divisible by the size
    of 'model'. Leaves with fewer than two dimensions, not counting an axis of runs, are not split
    over 'model'.

    Args:
      tree: arrays, or `jax.ShapeDtypeStruct`s.
      mesh: a mesh whose axes have the type `jax.sharding.AxisType.Auto`.
      runs: whether leaves have a first axis of runs, which is split over 'run'.
    """
    return jax.tree.map(lambda leaf: NamedSharding(mesh, _spec(leaf.shape, mesh, runs)), tree)


def of_batch(batch: PyTree, mesh: Mesh, *, runs: bool = False, steps: bool = False) -> PyTree:
    """Return shardings of batch leaves `[(run,) (step,) row, ...]`; rows are split over 'data'."""
    row = int(runs) + int(steps)

    def sharding(leaf) -> NamedSharding:
        spec: list[str | None] = [None] * (row + 1)
        if runs:
            spec[0] = _axis(mesh, "run", leaf.shape[0])
        spec[row] = _axis(mesh, "data", leaf.shape[row])
        return NamedSharding(mesh, jax.P(*spec))

    return jax.tree.map(sharding, batch)


def put(tree: PyTree, places: PyTree) -> PyTree:
    """Put arrays on devices with the shardings `places`; each process copies its own shards.

    Args:
      tree: arrays that are equal on every process, or that are already spread over all processes.
      places: a sharding for each leaf.
    """

    def array_on_mesh(leaf, place: NamedSharding):
        spread = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
        if spread or place.is_fully_addressable:
            return jax.device_put(leaf, place)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):  # callbacks cannot return keys
            return jax.jit(lambda: leaf, out_shardings=place)()
        return jax.make_array_from_callback(leaf.shape, place, np.asarray(leaf).__getitem__)

    return jax.tree.map(array_on_mesh, tree, places)


def stacked(start: Callable[[int], PyTree], shapes: PyTree) -> PyTree:
    """Return the trees ``start(0), start(1), ...`` as one tree with a first axis of runs.

    Each process calls `start` one after another for those runs that its own devices store, and
    keeps only the shards of its devices.

    Args:
      start: a function that returns the tree of run number i.
      shapes: a `jax.ShapeDtypeStruct` with a sharding for each leaf of the result.
    """
    leaves, structure = jax.tree.flatten(shapes)
    blocks: list[dict[tuple, list[np.ndarray]]] = []  # for each leaf: shards in order of runs
    for leaf in leaves:
        indices = leaf.sharding.addressable_devices_indices_map(leaf.shape).values()
        blocks.append({_bounds(index, leaf.shape): [] for index in indices})
    for run in range(leaves[0].shape[0]):
        if not any(first <= run < last for block in blocks for (first, last), *_ in block):
            continue
        for leaf, block in zip(jax.tree.leaves(start(run)), blocks, strict=True):
            array = np.asarray(leaf)
            for ((first, last), *inner), shards in block.items():
                if first <= run < last:
                    shards.append(array[tuple(slice(*bounds) for bounds in inner)].copy())

    def array_of(leaf, block):
        return jax.make_array_from_callback(
            leaf.shape,
            leaf.sharding,
            lambda index: np.stack(block[_bounds(index or (), leaf.shape)]),
        )

    return jax.tree.unflatten(structure, map(array_of, leaves, blocks))


def of_this_process(tree: PyTree) -> PyTree:
    """Convert replicated arrays to arrays of this process only; return other arrays unchanged."""

    def local(leaf):
        whole = leaf.is_fully_replicated and not leaf.is_fully_addressable
        return leaf.addressable_data(0) if whole else leaf

    return jax.tree.map(local, tree)


def _bounds(index: tuple[slice, ...], shape: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """Return the start and the stop of each slice in the index of a shard."""
    return tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))


def _spec(shape: tuple[int, ...], mesh: Mesh, runs: bool) -> jax.P:
    axes: list[str | None] = [None] * len(shape)
    ndim = len(shape) - int(runs)
    if runs and shape:
        axes[0] = _axis(mesh, "run", shape[0])
    if ndim >= 2:
        axes[-1] = _axis(mesh, "model", shape[-1])
    return jax.P(*axes)


def _axis(mesh: Mesh, name: str, size: int) -> str | None:
    """Return `name` if the mesh has an axis with this name whose size divides `size`, else None."""
    return name if name in mesh.shape and size % mesh.shape[name] == 0 else None
