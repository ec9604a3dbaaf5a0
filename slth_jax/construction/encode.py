"""Store a matrix as masks over two random factors drawn from a key, at b mask bits per entry."""

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

# For each `source`: the distributions of `left` and of `right`, and the variance of the product of
# an entry of `left` and an entry of `right`.
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
    """A matrix as a product of two masked factors: ``(left * left_mask) @ (right * right_mask)``.

    Attributes:
      left: the first random factor, multiplied by `scale`.
      right: the second random factor.
      left_mask: the mask of `left`; each row keeps one hidden unit for each column of the target.
      right_mask: the mask of `right`, a band matrix that is the same for every target.
      scale: the number by which the random `left` was multiplied; besides the key and the masks,
        only this number must be stored.
      bits: the number of mask bits per entry of the target; `right_mask` adds none, since it is
        fixed.
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
    """Approximate a matrix by the product of two masked random factors, `bits` mask bits per entry.

    Two random factors are drawn from `key`, with ``2^bits`` hidden units per column of the target.
    The masks are the result of ``construction.prune_product(..., construction=band(bits, states))``
    for these factors.

    Args:
      key: a typed PRNG key. Row i of `left` is drawn with the key ``fold_in(fold_in(key, 0), i)``,
        and unit k of `right` with the key ``fold_in(fold_in(key, 1), k)``.
      target: the matrix `[p, r]`, not all zeros. Each row is solved as a whole, and rows with more
        entries have smaller errors.
      bits: b, the number of mask bits per entry, from 1 to 12.
      states: the base-2 logarithm of the number of search states, see `band`.
      source: the distributions of the factors. 'uniform' is the paper's U[-1, 1] for both factors.
        'sign_uniform' and 'sign_normal' draw random signs for `left` and uniform or normal weights
        for `right`, which gives smaller errors. 'signs' draws random signs for both factors.
      scale: the number by which `left` is multiplied. If `scale` is None, seven scales are tried on
        up to 16 rows of the target, and the best is used.

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
    """Return both masks and the sum of the squared errors of the masked product."""
    left_mask, right_mask, error = trellis.solve(left, right, target, right.shape[0], band)
    return left_mask, right_mask, jnp.sum(jnp.square(error))
