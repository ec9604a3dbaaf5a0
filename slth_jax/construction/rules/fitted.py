"""The rule 'fitted': assign units so that each target lies in the middle of its subset sums.

The subset sums of a column's m samples are densest at half the sum of all m samples. The set S_j of
the units assigned to column j should therefore satisfy

    target_ij = 1/2 sum_{k in S_j} left_ik right_kj    for all rows i.

Rules that assign units by magnitude or in order do not centre the targets in this way. Without
centring, a source must be so wide that even the target farthest from the middle of its subset sums
lies within their range. The units of a column are chosen once for all rows, which takes little
time. Each column j in turn chooses the unit

    argmax_k  right_kj (left_k . e_j) - 1/8 (|right_kj| - size_j)^2 |left_k|^2,

where e_j is the vector of the targets of column j minus half the sum of the samples assigned to the
column so far. If all vectors right_kj left_k had the same length, the term with e_j alone would
choose the unit that brings e_j closest to zero. The term with size_j prefers weights right_kj whose
magnitude is near size_j, a magnitude that suits the column. If size_j were 0, the smallest weights
would be chosen first, and all subset sums would be nearly equal.

Some hidden units are shift units, as in the rule 'shift'. The assignment depends on the target, so
a ticket must store both masks.
"""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from slth_jax.construction.rules import shift_units
from slth_jax.construction.rules.rule import Factors, Rule, Slots, Span, take_turns
from slth_jax.types import Array, ArrayLike


def to_the_middle(factors: Factors, span: Span) -> Slots:
    """Let each column in turn choose the unit that best centres its targets among its sums."""
    return _centre(factors, span, signs=False)


def to_both_middles(factors: Factors, span: Span) -> Slots:
    """Assign units as `to_the_middle` does, for factors with a ReLU between them.

    Columns choose units with positive weight and units with negative weight in alternate rounds.
    The units with positive weight approximate a target for positive inputs, and the units with
    negative weight approximate it for negative inputs (Lemma 2).
    """
    return _centre(factors, span, signs=True)


def _centre(factors: Factors, span: Span, *, signs: bool) -> Slots:
    """Choose units for `to_the_middle` or, if `signs` is true, for `to_both_middles`.

    The arithmetic uses integers, so that the choice does not depend on summation order or fused
    multiply-add.
    """
    right, left, target = factors
    assert left is not None and target is not None
    p, r = target.shape
    n = right.shape[0]
    chex.assert_shape([right, left], [(n, r), (p, n)])
    # The missing targets are clipped to the reach of about 16 units, so that the sum over p rows of
    # an entry times a missing target stays within 31 bits.
    bits = max(1, min(6, (26 - (p - 1).bit_length()) // 3))
    limit = 2 ** (30 - bits - (p - 1).bit_length())
    u, left_exponent = _to_integers(left, bits)  # int32 [p, n]
    v, right_exponent = _to_integers(right, bits)  # int32 [n, r]
    doubled = jnp.ldexp(target, 2 * bits + 1 - left_exponent - right_exponent)
    missing = jnp.round(jnp.clip(doubled, -limit, limit)).astype(jnp.int32).T  # [r, p]
    length = _short(jnp.sum(u * u, axis=0), 9)  # [n], |left_k|^2
    units = (jnp.asarray(span.last) - span.first) / (2 * r if signs else r)
    size = jnp.ldexp(_suitable_size(left, target, span.last, units), bits - right_exponent)
    size = jnp.round(jnp.clip(size, 0, 2**bits)).astype(jnp.int32)  # [r]

    def sign(weight: Array) -> Array:
        return jnp.where(signs & (weight < 0), 1, 0)

    def weigh(turn, missing):
        # `missing` has shape [1 or 2, r, p]: if `signs` is true, positive and negative units have
        # separate missing targets.
        j, turn_sign = turn % r, turn // r % 2 if signs else 0
        weight = v[:, j]  # [n]
        along = _short(jnp.sum(u * missing[turn_sign, j][:, None], axis=0), 15)  # [n]
        x, off = (y.astype(jnp.float32) for y in (weight, jnp.abs(weight) - size[j]))
        return jnp.where(sign(weight) == turn_sign, x * along - off * off * length / 4, -_NEVER)

    def taken(turn, unit, missing):
        j = turn % r
        at = sign(v[unit, j]), j
        moved = missing[at] - u[:, unit] * v[unit, j]  # [p]
        return missing.at[at].set(jnp.clip(moved, -limit, limit))

    missing = jnp.broadcast_to(missing, (2 if signs else 1, r, p))
    return take_turns(weigh, r, span, n, state=missing, taken=taken)


_NEVER = 1e30
# The values 0.3 and 0.6 give nearly the same errors.
_SPREAD = 0.3


def _suitable_size(
    left: Float[Array, "p n"], target: Float[Array, "p r"], last: ArrayLike, units: ArrayLike
) -> Float[Array, " r"]:
    """Return, for each column j, the magnitude of ``right_kj`` that suits it best; shape `[r]`.

    If m units have the suitable magnitude, their subset sums have a standard deviation sigma of
    ``0.3 m`` times the root mean square of the column's targets: ``sigma^2 = m E[left^2]
    magnitude^2 / 4``. If sigma is much larger, the sums are sparse. If sigma is much smaller, some
    targets lie outside the range of the sums. The magnitude is rounded to three bits, so that a
    different summation order almost never changes it.
    """
    p = target.shape[0]
    square = jnp.sum(left**2) / (p * jnp.asarray(last, left.dtype))
    root = jnp.sqrt(jnp.mean(target**2, axis=0) * jnp.asarray(units, left.dtype) / square)
    return jax.lax.reduce_precision(2 * _SPREAD * root, 8, 3)


def _to_integers(x: Float[Array, "a b"], bits: int) -> tuple[Int[Array, "a b"], Int[Array, ""]]:
    """Return integers of at most 2^bits and an exponent e with ``x ~ integers 2^(e - bits)``."""
    _, exponent = jnp.frexp(jnp.max(jnp.abs(x)))
    return jnp.round(jnp.ldexp(x, bits - exponent)).astype(jnp.int32), exponent


def _short(x: Int[Array, " n"], digits: int) -> Float[Array, " n"]:
    """Round x to `digits` mantissa bits, so few that its products with matrix entries are exact."""
    return jax.lax.reduce_precision(x.astype(jnp.float32), 8, digits)


RULE = Rule(
    "fitted",
    "so that targets lie in the middle of their sums, with shift units",
    to_the_middle,
    assign_relu=to_both_middles,
    search=shift_units.SEARCH,
    either_side=True,
    needs_target=True,
)
