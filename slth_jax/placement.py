"""Where the arrays of a run live on a mesh of devices.

Axes that a mesh may have: 'run' (many runs under one vmap), 'data' (rows of a batch) and 'model'
(the last axis of parameters, scores and moments). GSPMD does the rest: masks are found by
counting, so sharded scores stay where they are.
"""

import jax
from jax.sharding import Mesh, NamedSharding

from slth_jax.types import PyTree


def of(tree: PyTree, mesh: Mesh, *, runs: bool = False) -> PyTree:
    """Return a sharding for each leaf of a run's state.

    The last axis of a leaf of two dimensions or more is split over 'model', where it divides.

    Args:
      tree: arrays, or shapes.
      mesh: with axes of `jax.sharding.AxisType.Auto`.
      runs: leaves have a first axis of runs, split over 'run'.
    """
    return jax.tree.map(lambda leaf: NamedSharding(mesh, _spec(leaf.shape, mesh, runs)), tree)


def of_batch(batch: PyTree, mesh: Mesh, *, runs: bool = False, steps: bool = False) -> PyTree:
    """Return a sharding for each leaf `[(run,) (step,) row, ...]` of a batch: rows over 'data'."""
    row = int(runs) + int(steps)

    def sharding(leaf) -> NamedSharding:
        spec: list[str | None] = [None] * (row + 1)
        if runs:
            spec[0] = _axis(mesh, "run", leaf.shape[0])
        spec[row] = _axis(mesh, "data", leaf.shape[row])
        return NamedSharding(mesh, jax.P(*spec))

    return jax.tree.map(sharding, batch)


def _spec(shape: tuple[int, ...], mesh: Mesh, runs: bool) -> jax.P:
    axes: list[str | None] = [None] * len(shape)
    ndim = len(shape) - int(runs)
    if runs and shape:
        axes[0] = _axis(mesh, "run", shape[0])
    if ndim >= 2:
        axes[-1] = _axis(mesh, "model", shape[-1])
    return jax.P(*axes)


def _axis(mesh: Mesh, name: str, size: int) -> str | None:
    """Return `name` if the mesh has that axis and it divides `size`."""
    return name if name in mesh.shape and size % mesh.shape[name] == 0 else None
