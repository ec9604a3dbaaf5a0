"""Random subset sums: the closest subset, exactly, for millions of small instances at once."""

import functools
from collections.abc import Callable
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from slth_jax import checks
from slth_jax.subset_sum.tile import solve_tile
from slth_jax.types import Array, ArrayLike

MAX_SAMPLES = 4096
# What can be enumerated at all, and what is of more samples than that.
MAX_EXACT, PART = 30, 24
# The least number of instances in a tile: shorter innermost loops are not vectorised on a CPU.
LANES = 64


class Solution(NamedTuple):
    """What `solve` found, for every instance of the batch."""

    mask: Annotated[Array, "bool[*batch, n]"]
    total: Annotated[Array, "float[*batch]"]
    error: Annotated[Array, "float[*batch]"]
    optimal: Annotated[Array, "bool[*batch]"]


def solve(
    samples: Annotated[ArrayLike, "[*batch, n]"],
    value: Annotated[ArrayLike, "[*batch]"],
    *,
    max_exact: int | None = None,
) -> Solution:
    """Return the subset of `samples` whose sum is closest to `value`, for every instance.

    `mask` minimises `|value - sum_i mask_i samples_i|` over {0, 1}^n, by meeting in the middle
    (Horowitz and Sahni 1974) in time O(2^(n/2) n). Beyond 30 samples (`max_exact`) all but 24,
    spread over the smaller three quarters, are settled from the largest down, each kept or not so
    that the value stays nearest to the middle of what the others can still reach; those set aside
    are then solved exactly. The result is never worse than keeping, from the largest down, each
    sample that brings the sum closer.

    Zeros are never kept, and zeros appended to the last axis change no bit of the rest of the
    result; nor do the batch, the place in it, `jit`, `vmap` or sharding. Subnormal numbers are
    zeros here, as they are to most accelerators. Nothing is differentiated through.

    A sharded batch (samples not split) is solved by every device on its own. One CPU device keeps
    little more than one core busy: for all of them set `JAX_NUM_CPU_DEVICES` and shard the batch.

    Args:
      samples: float32 or float64 of shape [..., n], n up to 4,096.
      value: the number to hit, of the leading shape [...].
      max_exact: up to so many samples (not counting zeros) the optimum is guaranteed; the time
        doubles with every second sample. From 2 to 30; None for n where n is at most 30 and 24
        beyond. Give it where results must not depend on zeros appended to 25 to 30 samples.

    Returns:
      `mask`; `total`, the sum of the kept samples, rounded once; `error = |value - total|`;
      `optimal`, true where no subset is closer up to rounding, because all were looked at
      (at most `max_exact` samples are not zero), or `value` lies at or beyond the sum of all
      positive or all negative samples, or `error` is at most the rounding unit `eps` times the
      largest of `|value|` and `|samples|`. "All were looked at" is exact for samples rounded to
      multiples of `2^-29 sum |samples|` (`2^-61` in float64), so that the error is at most
      `n 2^-29 sum |samples|` above the least possible.

    Raises:
      ValueError: shapes that do not fit, more than 4,096 samples, NaN or infinite numbers
        (where they are known: not under a transformation), dtypes other than the two.

    Examples:
      >>> found = solve([[0.5, -0.2, 0.125, 0.75]], [0.6])
      >>> found.mask.tolist()
      [[True, False, True, False]]
      >>> print(f"{found.total[0]:.3f}, {found.error[0]:.3f} away")
      0.625, 0.025 away
    """
    if max_exact is not None:
        max_exact = checks.integer("max_exact", max_exact, low=2, high=MAX_EXACT)
    samples = checks.array("samples", samples, min_ndim=1, kind="wide")
    value = checks.array("value", value, shape=samples.shape[:-1], kind="wide")
    if samples.shape[-1] > MAX_SAMPLES:
        raise checks.fail(
            "samples", f"at most {MAX_SAMPLES} numbers an instance", f"shape {samples.shape}"
        )
    if max_exact is None:
        max_exact = MAX_EXACT if samples.shape[-1] <= MAX_EXACT else PART
    dtype = jnp.promote_types(samples.dtype, value.dtype)
    return _solve(samples.astype(dtype), value.astype(dtype), max_exact=max_exact)


@functools.partial(jax.jit, static_argnames="max_exact")
def _solve(samples: Array, value: Array, *, max_exact: int) -> Solution:
    samples, value = lax.optimization_barrier(lax.stop_gradient((samples, value)))
    n = samples.shape[-1]
    flat = _solve_batch(max_exact)(samples.reshape(value.size, n), value.reshape(-1))
    return Solution(
        flat.mask.reshape(samples.shape), *(part.reshape(value.shape) for part in flat[1:])
    )


@functools.cache
def _solve_batch(max_exact: int) -> Callable[[Array, Array], Solution]:
    """Return the solver for `samples[b, n]`, `value[b]`.

    Where the batch is sharded every device solves its own part; vmap makes the batch longer.
    """

    @custom_partitioning
    def solve_shard(samples: Array, value: Array) -> Solution:
        return _in_tiles(samples, value, max_exact)

    def shardings(mesh, arguments, results):
        spec = arguments[0].sharding.spec
        batch = spec[0] if len(spec) else None
        return [NamedSharding(mesh, P(batch, *(None,) * (x.ndim - 1))) for x in results]

    def partition(mesh, arguments, results):
        whole, *others = shardings(mesh, arguments, results)
        return (
            mesh,
            lambda samples, value: _in_tiles(samples, value, max_exact),
            Solution(whole, *others),
            (whole, others[0]),
        )

    solve_shard.def_partition(
        partition,
        infer_sharding_from_operands=lambda *args: Solution(*shardings(*args)),
        sharding_rule="b n, b -> b n, b, b, b",
        need_replication_factors=("n",),
    )

    @jax.custom_batching.custom_vmap
    def solve_batch(samples: Array, value: Array) -> Solution:
        return solve_shard(samples, value)

    @solve_batch.def_vmap
    def rule(axis_size, batched, samples, value):
        if not batched[0]:
            samples = jnp.broadcast_to(samples, (axis_size, *samples.shape))
        if not batched[1]:
            value = jnp.broadcast_to(value, (axis_size, *value.shape))
        flat = solve_batch(samples.reshape(-1, samples.shape[-1]), value.reshape(-1))
        solution = jax.tree.map(lambda x: x.reshape(axis_size, -1, *x.shape[1:]), flat)
        return solution, jax.tree.map(lambda _: True, flat)

    return solve_batch


def _in_tiles(samples: Array, value: Array, max_exact: int) -> Solution:
    """Solve tile after tile, so that memory for what is in between does not grow with the batch."""
    batch, n = samples.shape
    if batch == 0 or n == 0:
        empty = jnp.zeros_like(value)
        return Solution(samples != 0, empty, jnp.abs(value), jnp.ones(batch, bool))
    size = min(_tile_size(n, max_exact), -(-batch // LANES) * LANES)
    pad = -batch % size
    samples = jnp.pad(samples, ((0, pad), (0, 0))).reshape(-1, size, n)
    value = jnp.pad(value, (0, pad)).reshape(-1, size)
    solution = lax.map(
        lambda tile: Solution(*solve_tile(tile[0], tile[1], max_exact)),
        (samples, value),
    )
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:batch], solution)


def _tile_size(n: int, max_exact: int) -> int:
    """Return how many instances go through the merge stages together, a multiple of `LANES`.

    On a CPU as few as the vector loops allow, so that the lists stay in the cache; elsewhere as
    many as keep the lists, each of 2^(n/2 + 1) numbers, at a quarter of a gibibyte.
    """
    if jax.default_backend() == "cpu":
        return LANES
    length = max(2 ** (min(n, max_exact) // 2 + 1), n)
    return max(LANES, min(2**16, 2**26 // length // LANES * LANES))
