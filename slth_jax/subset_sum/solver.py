"""Solve millions of small subset-sum problems at once: find the sum closest to a value."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float

from slth_jax import checks
from slth_jax.subset_sum.batch import solve_batch

MAX_SAMPLES = 4096
# Up to MAX_EXACT samples are enumerated. If there are more samples, PART of them are enumerated and
# the others are decided greedily.
MAX_EXACT = 30
PART = 24


class Solution(NamedTuple):
    """The closest subset for every instance of the batch, as `solve` returns it."""

    mask: Bool[Array, "*batch n"]
    total: Float[Array, "*batch"]
    error: Float[Array, "*batch"]
    optimal: Bool[Array, "*batch"]


def solve(
    samples: Float[ArrayLike, "*batch n"],
    value: Float[ArrayLike, "*batch"],
    *,
    max_exact: int | None = None,
) -> Solution:
    """Return the subset of `samples` whose sum is closest to `value`, for every instance.

    `mask` minimises `|value - sum_i mask_i samples_i|` over {0, 1}^n, by meeting in the middle
    (Horowitz and Sahni 1974) in time O(2^(n/2) n). If there are more than 30 samples, 24 samples
    among the smaller three quarters are set aside. The argument `max_exact`, if given, replaces
    both numbers. The remaining samples are kept or dropped one by one, the largest first, so that
    the value stays nearest to the middle of the sums that can still be reached. The samples that
    were set aside are then solved exactly. The result is never worse than the greedy choice, which
    goes through all samples, the largest first, and keeps each sample that brings the sum closer.

    Zeros are never kept. For a given `max_exact` the result of an instance does not depend on zeros
    appended to its samples, on the other instances of the batch, or on `jit`, `vmap` and sharding.
    Subnormal numbers count as zeros, as on most accelerators. No gradient passes through the
    result.

    If the batch is sharded over devices and the samples of an instance are not split, each device
    solves its part of the batch. On CPUs, float32 instances are solved several times faster if a
    C++ compiler is installed (`kernel`). One CPU device uses all cores. Inside a `jit` over more
    than eight accelerators, use `shard_map`, which gives tiles of full size.

    Args:
      samples: the numbers to choose from, float32 or float64 of shape [..., n], n up to 4,096.
      value: the numbers that the sums should reach, of shape [...].
      max_exact: the largest number of samples (not counting zeros) for which the optimum is
        guaranteed, from 2 to 30. Every two more samples double the time. The default is 30 if n is
        at most 30, and 24 if n is larger. Set `max_exact` if the results for 25 to 30 samples must
        not depend on appended zeros.

    Returns:
      A `Solution`. `total` is the sum of the kept samples, rounded once. `error` is `|value -
      total|`. `optimal` is true if all subsets were tried, because at most `max_exact` samples are
      not zero. `optimal` is also true if `value` lies at or beyond the sum of all positive or of
      all negative samples, or if `error` is at most the rounding unit `eps` times the largest of
      `|value|` and `|samples|`. In all three cases no subset has a closer sum, up to rounding.
      Subsets are tried with samples rounded to multiples of `2^-29 sum |samples|` (`2^-61` in
      float64). If all subsets were tried, the error is therefore at most `n 2^-29 sum |samples|`
      above the least possible error.

    Raises:
      ValueError: shapes do not fit, there are more than 4,096 samples, a number is NaN or infinite
        (not checked under a JAX transformation), or the dtype is neither float32 nor float64.

    Examples:
      >>> solution = solve(jnp.array([[0.5, -0.2, 0.125, 0.75]]), jnp.array([0.6]))
      >>> solution.mask.tolist()
      [[True, False, True, False]]
      >>> print(f"{solution.total[0]:.3f}, {solution.error[0]:.3f} away")
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
    samples = samples.astype(dtype)
    return _solve(samples, value.astype(dtype), max_exact=max_exact, devices=_devices(samples))


@functools.partial(jax.jit, static_argnames=("max_exact", "devices"))
def _solve(
    samples: Float[Array, "*batch n"],
    value: Float[Array, "*batch"],
    *,
    max_exact: int,
    devices: int,
) -> Solution:
    samples, value = lax.optimization_barrier(lax.stop_gradient((samples, value)))
    n = samples.shape[-1]
    flat = solve_batch(
        samples.reshape(value.size, n), value.reshape(-1), max_exact=max_exact, devices=devices
    )
    mask, *others = flat
    return Solution(mask.reshape(samples.shape), *(part.reshape(value.shape) for part in others))


def _devices(samples: Array) -> int:
    """Return the number of devices that share the batch; 1 inside `jit`, where they are unknown."""
    if isinstance(samples, jax.core.Tracer) or not samples.size:
        return 1
    shard = samples.sharding.shard_shape(samples.shape)
    return math.prod(samples.shape[:-1]) // math.prod(shard[:-1])
