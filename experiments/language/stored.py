"""Compare bytes and losses of tickets and of trained models rounded to few bits per weight."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from experiments import measure, rounding
from experiments.language.job import Job
from experiments.language.model import Model
from experiments.language.plots import METHODS
from slth_jax.models.settings import vector_shapes

_GROUP = 64  # entries of a rounded matrix that share a 16-bit step size


@functools.partial(jax.jit, static_argnums=1)
def rounded(matrices: Float[Array, "run ..."], bits: int) -> Float[Array, "run ..."]:
    """Round the matrices of all runs to `bits` per entry.

    16 bits mean float16. With fewer bits the entries are rounded to equally spaced values, with a
    separate step size for each group of 64 entries of a column; see `rounding.rounded`.
    """
    if bits == 16:
        return matrices.astype(jnp.float16).astype(matrices.dtype)
    columns = jnp.swapaxes(matrices, -1, -2)
    return jnp.swapaxes(rounding.rounded(columns, bits, _GROUP), -1, -2)


def num_bytes(model: Model, bits: int) -> int:
    """Return the number of bytes of a trained model with `bits` per entry of its matrices.

    Gains and biases are stored in float16.
    """
    total = 0.0
    for shape in model.shapes.values():
        size, rows = math.prod(shape), shape[-2]
        steps = 0 if bits == 16 else size // rows * -(-rows // _GROUP)
        total += size * bits / 8 + 2 * steps
    return round(total) + 2 * sum(map(math.prod, vector_shapes(model.settings).values()))


def by_bytes(
    bits: Sequence[int],
    jobs: Mapping[tuple[str, float, bool], Job],
    rows: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Return sizes in bytes, and moments of losses, for tickets and for rounded trained models.

    Args:
      bits: the numbers of bits per weight to which trained models are rounded.
      jobs: a dict from (model, width multiplier, whether training is dense) to the job.
      rows: the measurements of the runs that have the chosen learning rates.
    """
    points = []
    for (model, width, dense), job in jobs.items():
        setting = {"model": model, "width_multiplier": width}
        for method, name in METHODS.items():
            keys = ("model", "width_multiplier", "method")
            same = [row for row in rows if tuple(row[k] for k in keys) == (model, width, method)]
            if not same or (method == "dense") != dense:
                continue
            sizes = {
                f"{name}, {number} bits": (f"loss_{number}_bits", num_bytes(job.model, number))
                for number in (bits if dense else ())
            }
            if not dense:
                mean = round(measure.mean([row["bytes"] for row in same]))
                sizes = {name: ("loss", mean)}
            for label, (metric, size) in sizes.items():
                losses = measure.moments([row[metric] for row in same])
                points.append({**setting, "name": label, "bytes": size, **losses})
    return points
