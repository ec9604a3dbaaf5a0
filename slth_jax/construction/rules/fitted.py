"""Shift units, and units dealt so that every target lies in the middle of its subset sums.

The sums of a column's m samples lie densest about half of the sum of all of them. A column that
takes the units k of a set S_j should therefore have

    target_ij = 1/2 sum_{k in S_j} left_ik right_kj    for all rows i,

of which nothing is known in an assignment by size or in order: there a target lies anywhere, and
the width that a source needs is the one at which its worst entry is still within reach. Which
units serve a column is chosen once for all rows, and is nearly free: the columns take turns in
choosing

    argmax_k  right_kj (left_k . e_j) - 1/8 (|right_kj| - size_j)^2 |left_k|^2,

where e_j is what is left of the column's targets. The first term alone brings e_j the nearest to
zero if all units are of one length; the second asks for weights of a size that suits the column.
With 0 for that size the smallest would go first, whose sums lie all in one place.

The assignment depends on the target, so a ticket must hold both masks.
"""

import dataclasses

import jax
import jax.numpy as jnp

from slth_jax.construction.rules import shift_units
from slth_jax.construction.rules.reach import take_turns
from slth_jax.types import Array, ArrayLike


def to_the_middle(
    left: Array, right: Array, target: Array, first: ArrayLike, last: ArrayLike, most: int
) -> tuple[Array, Array]:
    """Let the columns take turns in choosing the unit that best centres their targets.

    Args:
      left: `[p, n]`.
      target: `[p, r]`.
      right, first, last, most: as in `Choose`.
    """
    return _centre(left, right, target, first, last, most, signs=False)


def to_both_middles(
    left: Array, right: Array, target: Array, first: ArrayLike, last: ArrayLike, most: int
) -> tuple[Array, Array]:
    """Deal units for a map across a ReLU: in turns of either sign, each to centre the targets.

    Units of positive weight meet a target where their input is positive, the others where it is
    negative (Lemma 2).
    """
    return _centre(left, right, target, first, last, most, signs=True)


def _centre(left, right, target, first, last, most, *, signs: bool) -> tuple[Array, Array]:
    """Deal in whole numbers, so that no order of summation and no fused product matters."""
    p, r = target.shape
    # Sums of p products of an entry and what is left of a target stay within 31 bits; what a
    # target's limit cuts off is some 16 units' worth of reach.
    bits = max(1, min(6, (26 - (p - 1).bit_length()) // 3))
    limit = 2 ** (30 - bits - (p - 1).bit_length())
    u, of_left = _whole(left, bits)
    v, of_right = _whole(right, bits)
    twice = jnp.ldexp(target, 2 * bits + 1 - of_left - of_right)
    missing = jnp.round(jnp.clip(twice, -limit, limit)).astype(jnp.int32).T
    length = _short(jnp.sum(u * u, axis=0), 9)
    units = (jnp.asarray(last) - first) / (2 * r if signs else r)
    size = jnp.ldexp(_suitable_size(left, target, last, units), bits - of_right)
    size = jnp.round(jnp.clip(size, 0, 2**bits)).astype(jnp.int32)

    def sign(weight: Array) -> Array:
        return jnp.where(signs & (weight < 0), 1, 0)

    def weigh(turn, missing):
        j, turn_of = turn % r, turn // r % 2 if signs else 0
        weight = v[:, j]
        along = _short(jnp.sum(u * missing[turn_of, j][:, None], axis=0), 15)
        x, off = (y.astype(jnp.float32) for y in (weight, jnp.abs(weight) - size[j]))
        return jnp.where(sign(weight) == turn_of, x * along - off * off * length / 4, -_NEVER)

    def taken(turn, unit, missing):
        j = turn % r
        at = sign(v[unit, j]), j
        moved = missing[at] - u[:, unit] * v[unit, j]
        return missing.at[at].set(jnp.clip(moved, -limit, limit))

    missing = jnp.broadcast_to(missing, (2 if signs else 1, r, p))
    return take_turns(weigh, right, first, last, most, state=missing, taken=taken)


_NEVER = 1e30
# 0.3 and 0.6 differ little.
_SPREAD = 0.3


def _suitable_size(left: Array, target: Array, last: ArrayLike, units: Array) -> Array:
    """Return the size of ``right_kj`` that suits column j, `[r]`.

    With m units of it, each kept or not, sums have the standard deviation ``0.3 m`` times the root
    mean square of the targets: ``sigma^2 = m E[left^2] size^2 / 4``. Sums that reach much further
    lie thin, sums that reach less far miss targets, which weighs the more the finer they are.
    Three bits are kept, so that another order of summation hardly ever rounds otherwise.
    """
    p = target.shape[0]
    square = jnp.sum(left**2) / (p * jnp.asarray(last, left.dtype))
    root = jnp.sqrt(jnp.mean(target**2, axis=0) * units.astype(left.dtype) / square)
    return jax.lax.reduce_precision(2 * _SPREAD * root, 8, 3)


def _whole(x: Array, bits: int) -> tuple[Array, Array]:
    """Return x as whole numbers up to 2^bits, and the power of two that stands for 2^bits."""
    _, exponent = jnp.frexp(jnp.max(jnp.abs(x)))
    return jnp.round(jnp.ldexp(x, bits - exponent)).astype(jnp.int32), exponent


def _short(x: Array, digits: int) -> Array:
    """Return x with so few binary digits that its products with entries are exact."""
    return jax.lax.reduce_precision(x.astype(jnp.float32), 8, digits)


RULE = dataclasses.replace(
    shift_units.RULE,
    name="fitted",
    summary="so that targets lie in the middle of their sums, with shift units",
    fit=to_the_middle,
    fit_across_relu=to_both_middles,
)
