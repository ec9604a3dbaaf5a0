"""Solve subset sums that keep few samples: find the closest sum of at most k samples."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from slth_jax import checks
from slth_jax.subset_sum.solver import Solution

# Subsets of one half that are compared per instance.
_MOST_SUBSETS = 1 << 16
_TOGETHER = 64  # instances that are solved at once


def solve_few(
    samples: Float[ArrayLike, "*batch n"], value: Float[ArrayLike, "*batch"], *, most: int
) -> Solution:
    """Return the subset of at most `most` samples whose sum is closest to `value`.

    `mask` minimises ``|value - sum_i mask_i samples_i|`` over the masks with at most `most` ones
    (subset sums of fixed size: da Cunha et al. 2023, Natale et al. 2024). The samples are split
    into two halves. Every sum of at most k samples of the first half is combined with the best
    matching sum of the second half. The time grows as the number of subsets of a half with at most
    k samples.

    Args:
      samples: float32 or float64 of shape [..., n].
      value: the numbers that the sums should reach, of shape [...].
      most: k, the largest number of samples that are kept.

    Returns:
      A `Solution` with the same fields as the result of `solve`. `optimal` is always true: if
      samples are rounded to multiples of ``2^-29 sum |samples|``, no subset of at most k samples
      has a closer sum. Zeros are never kept.

    Raises:
      ValueError: shapes do not fit, numbers are NaN or infinite, k is below 1, or half of the
        samples have more than 65,536 subsets of at most k samples.

    Examples:
      >>> solution = solve_few(jnp.array([[0.5, -0.2, 0.125, 0.75]]), jnp.array([0.6]), most=1)
      >>> solution.mask.tolist()
      [[True, False, False, False]]
    """
    most = checks.integer("most", most, low=1)
    samples = checks.array("samples", samples, min_ndim=1, kind="wide")
    value = checks.array("value", value, shape=samples.shape[:-1], kind="wide")
    n = samples.shape[-1]
    if n == 0:
        raise checks.fail("samples", "at least one number per instance", f"shape {samples.shape}")
    half = -(-n // 2)
    count = sum(math.comb(half, size) for size in range(min(most, half) + 1))
    if count > _MOST_SUBSETS:
        allowed = f"a number with at most {_MOST_SUBSETS} subsets of half of the {n} samples"
        raise checks.fail("most", allowed, f"{most}, with {count}")
    dtype = jnp.promote_types(samples.dtype, value.dtype)
    return _solve_few(samples.astype(dtype), value.astype(dtype), most=most)


def _masks(n: int, most: int) -> list[Bool[np.ndarray, "subsets n"]]:
    """Return, for each count from 0 to `most`, all masks of n samples with `count` ones."""
    tables = []
    for count in range(min(most, n) + 1):
        chosen = np.array(list(itertools.combinations(range(n), count)), int)
        masks = np.zeros((len(chosen), n), bool)
        masks[np.arange(len(chosen))[:, None], chosen.reshape(len(chosen), count)] = True
        tables.append(masks)
    return tables


@functools.partial(jax.jit, static_argnames="most")
def _solve_few(
    samples: Float[Array, "*batch n"], value: Float[Array, "*batch"], *, most: int
) -> Solution:
    samples, value = lax.stop_gradient((samples, value))
    n = samples.shape[-1]
    flat = samples.reshape(-1, n)
    # Integers, so that sums do not depend on their order; the unit is 2^-29 of the sum of all.
    unit = jnp.sum(jnp.abs(flat), axis=-1, keepdims=True) * 2.0**-29
    unit = jnp.where(unit > 0, unit, 1)
    integers = jnp.round(flat / unit).astype(jnp.int32)
    aim = jnp.round(jnp.clip(value.reshape(-1, 1) / unit, -(2.0**30), 2.0**30)).astype(jnp.int32)
    mask = lax.map(
        lambda instance: _closest(*instance, most=most), (integers, aim[:, 0]), batch_size=_TOGETHER
    )
    mask = (mask & (flat != 0)).reshape(samples.shape)
    total = jnp.sum(jnp.where(mask, samples, 0), axis=-1)
    return Solution(mask, total, jnp.abs(value - total), jnp.ones(value.shape, bool))


def _closest(samples: Int[Array, " n"], value: Int[Array, ""], *, most: int) -> Bool[Array, " n"]:
    half = -(-len(samples) // 2)
    first, second = _masks(half, most), _masks(len(samples) - half, most)
    error = jnp.int32(2**31 - 1)
    best = jnp.zeros(len(samples), bool)
    for count, masks in enumerate(first):
        others = np.concatenate(second[: most - count + 1])
        rest = value - _sums(masks, samples[:half])  # [subsets]
        sums = _sums(others, samples[half:])
        order = jnp.argsort(sums)
        above = jnp.clip(jnp.searchsorted(sums[order], rest), 0, len(others) - 1)
        for place in (jnp.maximum(above - 1, 0), above):
            distance = jnp.abs(rest - sums[order[place]])
            at = jnp.argmin(distance)
            mask = jnp.concatenate([jnp.asarray(masks)[at], jnp.asarray(others)[order[place[at]]]])
            closer = distance[at] < error
            error = jnp.where(closer, distance[at], error)
            best = jnp.where(closer, mask, best)
    return best


def _sums(
    masks: Bool[np.ndarray, "subsets n"], samples: Int[Array, " n"]
) -> Int[Array, " subsets"]:
    return jnp.sum(jnp.where(masks, samples, 0), axis=-1)
