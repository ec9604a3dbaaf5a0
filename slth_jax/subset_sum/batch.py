"""Solve a batch of subset sums in tiles, with a different program for each platform.

`solve_batch` binds a JAX primitive, whose program is chosen and traced when the primitive is
lowered. The platform is not known before lowering, because the program may be compiled for another
machine.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir
from jaxtyping import Array, Float

from slth_jax.subset_sum import kernel
from slth_jax.subset_sum.tile import TileSolution, solve_tile

# The least number of instances in a tile. On a CPU shorter innermost loops are not vectorised.
LANES = 64

_solve_batch = Primitive("closest_subsets")
_solve_batch.multiple_results = True


def solve_batch(
    samples: Float[Array, "b n"], value: Float[Array, "b"], *, max_exact: int, devices: int
) -> TileSolution:
    """Solve a batch of b instances: return `mask [b, n]`, and `total`, `error`, `optimal [b]`.

    Args:
      samples: the numbers to choose from, float32 or float64.
      value: the numbers that the sums should reach, in the same dtype.
      max_exact: the largest number of samples for which all subsets are tried.
      devices: the number of devices over which the batch is known to be split. The number of
        devices affects only the size of tiles, not the result.
    """
    # `value` gets an axis of length one, since XLA splits a call only along the first of several
    # axes.
    mask, *numbers = _solve_batch.bind(
        samples, value[:, None], max_exact=max_exact, devices=devices
    )
    return TileSolution(mask, *(x[:, 0] for x in numbers))


@_solve_batch.def_abstract_eval
def _shapes(samples, value, *, max_exact, devices):
    # `update` keeps the array's other attributes: its sharding, and the axes along which it varies.
    mask = samples.update(dtype=jnp.dtype(bool), weak_type=False)
    number = value.update(weak_type=False)
    return [mask, number, number, number.update(dtype=jnp.dtype(bool))]


def _batched(arguments, axes, *, max_exact, devices):
    """Implement `vmap`: merge the mapped axis into the batch, and solve one longer batch."""
    size = next(x.shape[a] for x, a in zip(arguments, axes, strict=True) if a is not None)
    samples, value = (
        batching.bdim_at_front(x, axis, size) for x, axis in zip(arguments, axes, strict=True)
    )
    flat = _solve_batch.bind(
        samples.reshape(-1, samples.shape[-1]),
        value.reshape(-1, 1),
        max_exact=max_exact,
        devices=devices,
    )
    return [x.reshape(size, -1, *x.shape[1:]) for x in flat], [0] * len(flat)


batching.primitive_batchers[_solve_batch] = _batched


def _for_cpu(samples, value, *, max_exact, devices):
    # A tile has the fewest instances that can be vectorised, so that the lists stay in the cache.
    return _tiled(samples, value, max_exact, LANES * devices, apart=True)


def _for_tpu(samples, value, *, max_exact, devices):
    # A tile is so small that all lists stay in the vector memory.
    lanes = 1024 if min(samples.shape[1], max_exact) <= 22 else 256
    return _tiled(samples, value, max_exact, lanes * devices)


def _for_gpu(samples, value, *, max_exact, devices):
    # A tile is so large that the lists of its instances, each of 2^(n/2 + 1) numbers, take a
    # quarter of a gibibyte.
    n = samples.shape[1]
    length = max(2 ** (min(n, max_exact) // 2 + 1), n)
    lanes = max(LANES, min(2**16, 2**26 // length // LANES * LANES))
    return _tiled(samples, value, max_exact, lanes * devices)


def _tiled(samples, value, max_exact, lanes, apart=False):
    mask, *numbers = in_tiles(samples, value[:, 0], max_exact=max_exact, lanes=lanes, apart=apart)
    return [mask, *(x[:, None] for x in numbers)]


def _lower_for_cpu(context, samples, value, *, max_exact, devices):
    """Emit a call of the compiled C++ kernel; if it cannot be used, emit the program for XLA."""
    samples_type = context.avals_in[0]
    if samples_type.size and samples_type.dtype == jnp.float32 and kernel.ready():
        return kernel.lower(context, samples, value, max_exact)
    return _by_xla(_for_cpu)(context, samples, value, max_exact=max_exact, devices=devices)


_by_xla = functools.partial(mlir.lower_fun, multiple_results=True)
_solve_batch.def_impl(_for_cpu)
mlir.register_lowering(_solve_batch, _lower_for_cpu, platform="cpu")
mlir.register_lowering(_solve_batch, _by_xla(_for_tpu), platform="tpu")
mlir.register_lowering(_solve_batch, _by_xla(_for_gpu))


@functools.partial(jax.jit, static_argnames=("max_exact", "lanes", "apart"))
def in_tiles(
    samples: Float[Array, "b n"],
    value: Float[Array, "b"],
    *,
    max_exact: int,
    lanes: int,
    apart: bool = False,
) -> TileSolution:
    """Solve a batch in tiles of about `lanes` instances; long batches take no more memory.

    A tile takes the same number of instances from each of `rows` equal parts of the batch. If the
    number of devices divides `lanes`, each device therefore solves its part of every tile, and no
    data move between devices. If `apart` is true, XLA compiles the merges of sorted lists
    separately from the surrounding operations.
    """
    batch, n = samples.shape
    if batch == 0 or n == 0:
        empty = jnp.zeros_like(value)
        return TileSolution(samples != 0, empty, jnp.abs(value), jnp.ones(batch, bool))
    rows = math.gcd(batch, lanes)
    part = batch // rows
    # The sizes of tiles are nearly equal multiples of LANES, so there is little padding.
    unit = LANES // math.gcd(rows, LANES)
    width = math.ceil(part / math.ceil(batch / lanes) / unit) * unit
    steps = math.ceil(part / width)
    pad = steps * width - part

    def split(x: Array) -> Array:  # [b, ...] -> [steps, rows, width, ...]
        x = x.reshape(rows, part, *x.shape[1:])
        x = jnp.pad(x, ((0, 0), (0, pad), *((0, 0),) * (x.ndim - 2)))
        return jnp.moveaxis(x.reshape(rows, steps, width, *x.shape[2:]), 1, 0)

    def join(x: Array) -> Array:  # [steps, rows * width, ...] -> [b, ...]
        x = jnp.moveaxis(x.reshape(steps, rows, width, *x.shape[2:]), 0, 1)
        return x.reshape(rows, steps * width, *x.shape[3:])[:, :part].reshape(batch, *x.shape[3:])

    def one_tile(tile: tuple[Array, Array, Array]) -> TileSolution:
        samples, value, number = tile
        samples, value = samples.reshape(rows * width, n), value.reshape(rows * width)
        # The value is always true, but the compiler cannot derive this.
        running = number < count if apart else None
        return solve_tile(samples, value, max_exact, running)

    count = lax.optimization_barrier(jnp.int32(steps))
    tiles = split(samples), split(value), jnp.arange(steps, dtype=jnp.int32)
    return jax.tree.map(join, lax.map(one_tile, tiles))
