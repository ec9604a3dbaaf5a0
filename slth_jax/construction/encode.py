"""Hide a matrix at b bits per entry: draw random factors from a key, find a band's masks."""

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

# The free and the grouped factor's distributions, and the variance of a product of their entries.
SOURCES = {
    "uniform": (initializers.uniform, initializers.uniform, 1 / 9),
    "sign_uniform": (initializers.signs, initializers.uniform, 1 / 3),
    "sign_normal": (initializers.signs, initializers.normal, 1.0),
    "signs": (initializers.signs, initializers.signs, 1.0),
}
# The scales that are tried: standard deviations of a sum of L terms, in units of the root mean
# square of the target's entries.
_SPREADS = (1.0, 1.2, 1.45, 1.75, 2.1, 2.6, 3.2)
_ROWS_TRIED = 16


class Encoded(NamedTuple):
    """A target as masked random factors: ``(left * left_mask) @ (right * right_mask)``.

    Attributes:
      left: the free factor, its scale included.
      right: the grouped factor.
      left_mask: keeps one unit per column in each row.
      right_mask: the mask of the band, the same for every target.
      scale: the largest weight of `left`; the only number to store besides key and masks.
      bits: mask bits per entry; `right_mask` takes none, since it is fixed.
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

    The masks are those of ``construction.prune_product(..., construction=band(bits,
    states))`` for factors drawn from `key`, with ``2^bits`` units per column.

    Args:
      key: a typed PRNG key. Row i of `left` is drawn from ``fold_in(fold_in(key, 0), i)``, unit k
        of `right` from ``fold_in(fold_in(key, 1), k)``.
      target: `[p, r]`, not all zeros. Each row is solved as a whole; long rows have smaller errors.
      bits: b, from 1 to 12.
      states: the base-2 logarithm of the number of states of the search, see `band`.
      source: the distributions of the factors: 'uniform', the paper's U[-1, 1] for both;
        'sign_uniform' and 'sign_normal', random signs for the free factor, which give smaller
        errors; 'signs', random signs for both.
      scale: the scale of the free factor; None for the best of seven scales on up to 16 rows.

    Raises:
      ValueError: arguments outside these ranges, or a target that is empty or zero.
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
