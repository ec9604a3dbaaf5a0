"""Hide a matrix at b bits per entry: draw random factors from a key and find their masks."""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from slth_jax import checks, initializers
from slth_jax.construction import rules, trellis
from slth_jax.construction.trellis import Band
from slth_jax.types import Array, ArrayLike, Key

# For each `source`: the distributions of the free and the grouped factor, and the variance of the
# product of two of their entries.
SOURCES = {
    "uniform": (initializers.uniform, initializers.uniform, 1 / 9),
    "sign_uniform": (initializers.signs, initializers.uniform, 1 / 3),
    "sign_normal": (initializers.signs, initializers.normal, 1.0),
    "signs": (initializers.signs, initializers.signs, 1.0),
}
# The scales that are tried. Each is given as the standard deviation of a sum of L terms divided by
# the root mean square of the target's entries.
_SPREADS = (1.0, 1.2, 1.45, 1.75, 2.1, 2.6, 3.2)
_ROWS_TRIED = 16


class Encoded(NamedTuple):
    """A target as masked random factors: ``(left * left_mask) @ (right * right_mask)``.

    Attributes:
      left: the free factor, multiplied by its scale.
      right: the grouped factor.
      left_mask: the mask of `left`, which keeps one unit per column in each row.
      right_mask: the mask of `right`, a band that is the same for every target.
      scale: the largest weight of `left`; besides key and masks only this number must be stored.
      bits: the mask bits per entry of the target; `right_mask` takes none, since it is fixed.
      error: the mean squared error of the product's entries divided by the mean square of the
        target's entries.
    """

    left: Float[Array, "p n"]
    right: Float[Array, "n r"]
    left_mask: Bool[Array, "p n"]
    right_mask: Bool[Array, "n r"]
    scale: float
    bits: int
    error: float


def encode_matrix(
    key: Key,
    target: ArrayLike,
    *,
    bits: int = 4,
    states: int = 12,
    source: str = "uniform",
    scale: float | None = None,
) -> Encoded:
    """Hide a matrix in a product of two random matrices at `bits` mask bits per entry.

    Two factors with ``2^bits`` units per column are drawn from `key`. The masks are the result of
    ``construction.prune_product(..., construction=band(bits, states))`` for these factors.

    Args:
      key: a typed PRNG key. Row i of `left` is drawn with the key ``fold_in(fold_in(key, 0), i)``,
        and unit k of `right` with the key ``fold_in(fold_in(key, 1), k)``.
      target: `[p, r]`, not all zeros. Each row is solved as a whole, and long rows have smaller
        errors.
      bits: b, from 1 to 12.
      states: the base-2 logarithm of the number of search states, see `band`.
      source: the distributions of the factors: 'uniform', the paper's U[-1, 1] for both;
        'sign_uniform' and 'sign_normal', with random signs for the free factor, which give smaller
        errors; 'signs', with random signs for both factors.
      scale: the scale of the free factor. If it is None, seven scales are tried on up to 16 rows
        and the best is used.

    Raises:
      ValueError: an argument is outside its range, or the target is empty or all zeros.
    """
    rule = rules.band(bits, states)
    assert rule.band is not None
    key = checks.key("key", key)
    checks.choice("source", source, SOURCES)
    target = checks.array("target", target, ndim=2, kind="factor").astype(jnp.float32)
    p, r = target.shape
    size = float(jnp.sqrt(jnp.mean(jnp.square(target)))) if target.size else 0.0
    if not size:
        raise checks.fail("target", "a matrix with an entry other than 0", f"shape {(p, r)}")
    draw_left, draw_right, variance = SOURCES[source]
    n = 2**bits * r
    left = initializers.units(draw_left, jax.random.fold_in(key, 0), p, (n,))
    right = initializers.units(draw_right, jax.random.fold_in(key, 1), n, (r,))
    solve = partial(_solve, right=right, band=rule.band)
    if scale is None:
        spread = 1 / math.sqrt(min(rule.band.window, r) * variance)
        rows = np.unique(np.linspace(0, p - 1, min(p, _ROWS_TRIED)).astype(int))
        tried = [float(np.float32(size * factor * spread)) for factor in _SPREADS]
        scale = min(tried, key=lambda s: float(solve(s * left[rows], target[rows])[2]))
    else:
        scale = checks.number("scale", scale, low=0, high=1e17, open_low=True)
    left = jnp.float32(scale) * left
    left_mask, right_mask, squares = solve(left, target)
    error = float(squares) / (size * size * target.size)
    return Encoded(left, right, left_mask, right_mask, scale, bits, error)


@partial(jax.jit, static_argnames="band")
def _solve(left: Array, target: Array, *, right: Array, band: Band):
    """Return the masks and the sum of squared errors."""
    left_mask, right_mask, error = trellis.solve(left, right, target, right.shape[0], band)
    return left_mask, right_mask, jnp.sum(jnp.square(error))
