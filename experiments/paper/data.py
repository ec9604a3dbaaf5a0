"""Make the paper's synthetic data: points that rotate with a constant angular velocity."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from slth_jax.types import Array, Key

# The variance of w ~ U[-pi, pi], which is the mean squared error of the constant answer 0.
VELOCITY_VARIANCE = math.pi**2 / 3


class Sequences(NamedTuple):
    """Sequences `x [s, t, 2]`, their angular velocities `w [s]`, and their lengths `[s]`."""

    x: Array
    w: Array
    length: Array


def angular_velocity(
    key: Key, count: int, length: int, *, min_length: int | None = None
) -> Sequences:
    """Draw ``x_t = (cos(w t + theta), sin(w t + theta))``, t = 0, 1, ... (paper, section 3).

    ``w ~ U[-pi, pi]`` radians per step and ``theta ~ U[0, pi]``. If `min_length` is given, lengths
    are drawn uniformly from ``min_length, 2 min_length, 4 min_length, ... length``, and the points
    beyond a sequence's length are zero. If `min_length` is None, all lengths are `length`. The
    points are computed in float64 if JAX's 64-bit mode is on.
    """
    dtype = jax.dtypes.canonicalize_dtype(jnp.float64)
    for_w, for_theta, for_length = jax.random.split(key, 3)
    # w and theta are drawn in float32, so that they do not depend on JAX's 64-bit mode.
    w = jax.random.uniform(for_w, (count,), jnp.float32, -math.pi, math.pi).astype(dtype)
    theta = jax.random.uniform(for_theta, (count,), jnp.float32, 0, math.pi).astype(dtype)
    doublings = 0 if min_length is None else (length // min_length).bit_length() - 1
    halved = jax.random.randint(for_length, (count,), 0, doublings + 1, jnp.int32)
    lengths = length >> halved
    t = jnp.arange(length, dtype=dtype)
    angle = w[:, None] * t[None] + theta[:, None]
    x = jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)
    inside = jnp.arange(length)[None] < lengths[:, None]
    return Sequences(x * inside[..., None].astype(dtype), w, lengths)


def with_token(token: Array, x: Array) -> Array:
    """Put the regression token `[2]` before every sequence `[s, t, 2]`; return `[s, t + 1, 2]`."""
    first = jnp.broadcast_to(token.astype(x.dtype)[None, None], (x.shape[0], 1, x.shape[2]))
    return jnp.concatenate([first, x], axis=1)
