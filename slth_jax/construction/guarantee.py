"""What can be guaranteed of a given ticket, from its actual numbers.

The printed theorems need norms at most 1 and constants that nobody knows. Here the same argument
is carried through with the numbers of one ticket: the largest input norm, the spectral norms of
the target's merged matrices and of their differences from the ticket's, the sharper softmax bound
``2 tanh(e / 2)`` (`theory.sharp_softmax_error`), and a term for round-off. Everything is computed
in NumPy float64.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from slth_jax import checks
from slth_jax.construction import fits
from slth_jax.theory import sharp_softmax_error
from slth_jax.transformer import Block, Linear
from slth_jax.types import AttentionParams

# Relative error of exp, in units of round-off, that XLA's back ends stay within.
_EXP_ULPS = 4


class Guarantee(NamedTuple):
    """A bound on ``max_i ||ticket(x)_i - target(x)_i||`` for inputs with rows of bounded norm."""

    error: float  # the bound, round-off included
    round_off: float  # the part of `error` that stands for rounding
    trivial: float  # what holds for any two such networks: the sum of their largest outputs

    @property
    def vacuous(self) -> bool:
        """Whether the bound says no more than the size of the outputs does."""
        return not self.error < self.trivial


class _Head(NamedTuple):
    """Spectral norms of one head's merged matrices, and of the absolute factors of each."""

    qk: float
    vo: float
    abs_qk: float
    abs_vo: float


def guaranteed_error(
    source: AttentionParams | Sequence[Block],
    masks: AttentionParams | Sequence[Block],
    target: AttentionParams | Sequence[Block],
    max_norm: float,
    *,
    num_tokens: int = 1024,
    dtype: Any = None,
) -> float:
    """Bound the error of a ticket on all inputs whose rows have norm at most `max_norm`.

    For one head, ``||p_S X W_S - p_T X W_T|| <= 2 tanh(e / 2) a ||W_T|| + a ||W_S - W_T||`` with
    ``e = a^2 ||QK_S - QK_T||``, ``a = max_norm`` and W the merged value-output matrices; heads
    add up. Blocks are propagated one after another with the norms and errors so far. The bound
    holds for every attention mask and, but for round-off, every number of tokens.

    Args:
      source: the unmasked random weights; attention, or a sequence of transformer blocks.
      masks: what `construction` returned for them. Where a block's masks have no layers, its
        ReLU network is the target's own.
      target: the network to compute.
      max_norm: bound on the 2-norm of the rows of the input.
      num_tokens: most tokens in an input; only the round-off term depends on it.
      dtype: arithmetic in which ticket and target are applied (for the round-off term, first
        order worst case, full-precision matrix products); None for the dtype of `source`.

    Returns:
      The bound. Call `guarantee` for its parts; `is_vacuous` tells whether it says anything.

    Raises:
      ValueError: shapes that do not fit, or a negative `max_norm`.
    """
    return guarantee(source, masks, target, max_norm, num_tokens=num_tokens, dtype=dtype).error


def is_vacuous(source, masks, target, max_norm: float, **options) -> bool:
    """Return whether `guaranteed_error` says no more than the size of the outputs does."""
    return guarantee(source, masks, target, max_norm, **options).vacuous


def guarantee(
    source, masks, target, max_norm: float, *, num_tokens: int = 1024, dtype: Any = None
) -> Guarantee:
    """Return the bound of `guaranteed_error` with its parts. Arguments as there."""
    max_norm = checks.number("max_norm", float(max_norm), low=0)
    checks.integer("num_tokens", num_tokens, low=1)
    if isinstance(target, AttentionParams):
        unit = _unit_round_off(source.w_q if dtype is None else None, dtype)
        ticket = _masked_attention(source, masks)
        return _attention_guarantee(ticket, _float64(target), max_norm, num_tokens, unit)
    unit = _unit_round_off(source[0].attention.w_q if dtype is None else None, dtype)
    return _blocks_guarantee(source, masks, target, max_norm, num_tokens, unit)


def _attention_guarantee(
    ticket: AttentionParams, target: AttentionParams, alpha: float, num_tokens: int, unit: float
) -> Guarantee:
    difference, round_off, trivial = 0.0, 0.0, 0.0
    num_heads, m = target.w_q.shape[:2]
    for h in range(num_heads):
        in_ticket, in_target = _head(ticket, h), _head(target, h)
        d_qk = _spectral(_w_qk(ticket, h) - _w_qk(target, h))
        d_vo = _spectral(_w_vo(ticket, h) - _w_vo(target, h))
        moved = sharp_softmax_error(alpha**2 * d_qk, alpha=alpha) if alpha else 0.0
        difference += moved * in_target.vo + alpha * d_vo
        trivial += alpha * (in_ticket.vo + in_target.vo)
        for head, params in ((in_ticket, ticket), (in_target, target)):
            k, v = params.w_q.shape[-1], params.w_v.shape[-1]
            round_off += _head_round_off(head, alpha, m, k, v, num_heads, num_tokens, unit)
    return Guarantee(float(difference + round_off), float(round_off), float(trivial))


def _head_round_off(
    head: _Head, alpha: float, m: int, k: int, v: int, num_heads: int, num_tokens: int, unit: float
) -> float:
    """Bound the rounding of one head of `attention.apply`, first order in the unit round-off."""
    logits = _gamma(2 * m + k + 4, unit) * alpha**2 * head.abs_qk
    exponent = unit * (2 * alpha**2 * head.qk + _EXP_ULPS)
    weights = 2 * np.expm1(min(exponent, 50.0)) + _gamma(num_tokens + 2, unit)
    sums = _gamma(num_tokens + m + v + num_heads + 2, unit) * (1 + weights)
    return (logits + weights) * alpha * head.vo + sums * alpha * head.abs_vo


def _blocks_guarantee(source, masks, target, alpha, num_tokens, unit) -> Guarantee:
    """Propagate the norm of the target's rows, the ticket's distance and round-off by block."""
    if not len(source) == len(masks) == len(target):
        raise checks.fail("source, masks and target", "of one length", (len(source), len(masks)))
    error, round_off = 0.0, 0.0
    for from_block, mask, to_block in zip(source, masks, target, strict=True):
        ticket = _masked_attention(from_block.attention, mask.attention)
        attention = _float64(to_block.attention)
        reached = alpha + error  # norm of the ticket's rows
        step = _attention_guarantee(ticket, attention, reached, num_tokens, unit)
        moved = 0.0
        for h in range(attention.w_q.shape[0]):
            head = _head(attention, h)
            logits = head.qk * error * (reached + alpha)
            average = sharp_softmax_error(logits, alpha=reached) if reached else 0.0
            moved += (average + error) * head.vo
        growth = sum(_head(attention, h).vo for h in range(attention.w_q.shape[0]))
        hidden_error = error + step.error + moved + 2 * unit * (reached + step.trivial)
        hidden_norm = alpha * (1 + growth)
        round_off += step.round_off
        error, alpha, rounding = _layers_error(
            from_block.layers, mask.layers, to_block.layers, hidden_error, hidden_norm, unit
        )
        round_off += rounding
    # The ticket's rows are no longer than alpha + error: a bound below 2 alpha says something.
    return Guarantee(float(error), float(round_off), float(2 * alpha))


def _layers_error(source, masks, target, error: float, norm: float, unit: float):
    """Return error, norm and round-off of ``F(y) + y`` for rows y of given error and norm."""
    in_error, in_norm = error, norm
    rounding = 0.0
    if not target:
        return error, norm, rounding
    for l, layer in enumerate(target):
        w = np.asarray(layer.w, np.float64)
        if not masks:  # the target's own layer: it only carries the error on
            here = 2 * _gamma(w.shape[1] + 2, unit) * _spectral(abs(w)) * (norm + error)
            rounding += here
            error = _spectral(w) * error + here
            norm = _spectral(w) * norm + _bias_norm(layer)
            continue
        first, second = source[2 * l], source[2 * l + 1]
        w1 = _masked(first.w, masks[2 * l].w)
        w2 = _masked(second.w, masks[2 * l + 1].w)
        fits.check_biases(first, second, layer)
        # relu(u x) = u x+ for u > 0 and -u x- for u < 0: two products, one per half of x.
        plus, minus = w2 @ np.where(w1 > 0, w1, 0), w2 @ np.where(w1 < 0, w1, 0)
        both = np.concatenate([plus - w, minus - w], axis=1) if l == 0 else plus - w
        reached = norm + error
        absolute = _spectral(abs(w2) @ abs(w1)) + _spectral(abs(w))
        here = _gamma(w1.shape[1] + w1.shape[0] + 4, unit) * absolute * reached
        rounding += here
        error = _spectral(both) * reached + _spectral(w) * error + here
        norm = _spectral(w) * norm + _bias_norm(layer)
    final = 2 * unit * (norm + in_norm + error + in_error)
    return error + in_error + final, norm + in_norm, rounding + final


def _bias_norm(layer: Linear) -> float:
    return 0.0 if layer.b is None else float(np.linalg.norm(np.asarray(layer.b, np.float64)))


def _w_qk(params: AttentionParams, h: int) -> np.ndarray:
    return params.w_q[h] @ params.w_k[h].T / np.sqrt(float(params.key_width))


def _w_vo(params: AttentionParams, h: int) -> np.ndarray:
    return np.asarray(params.w_v[h] @ params.w_o[h])


def _head(params: AttentionParams, h: int) -> _Head:
    absolute: AttentionParams = jax.tree.map(abs, params)
    return _Head(
        qk=_spectral(_w_qk(params, h)),
        vo=_spectral(_w_vo(params, h)),
        abs_qk=_spectral(_w_qk(absolute, h)),
        abs_vo=_spectral(_w_vo(absolute, h)),
    )


def _float64(params: AttentionParams) -> AttentionParams:
    return jax.tree.map(lambda w: np.asarray(w, np.float64), params)


def _masked(weight, mask) -> np.ndarray:
    weight, mask = np.asarray(weight, np.float64), np.asarray(mask)
    if weight.shape != mask.shape:
        raise checks.fail("masks", f"of the shapes of source ({weight.shape})", mask.shape)
    return weight * mask


def _masked_attention(source: AttentionParams, masks: AttentionParams) -> AttentionParams:
    masked = map(_masked, source, masks)
    named: dict[str, Any] = dict(zip(source._fields, masked, strict=True))
    return _float64(source)._replace(**named)


def _spectral(matrix: np.ndarray) -> float:
    return float(np.linalg.norm(matrix, 2))


def _gamma(n: int, unit: float) -> float:
    """Return Higham's ``n u / (1 - n u)``: relative error of a sum of n products."""
    return n * unit / (1 - n * unit) if n * unit < 1 else np.inf


def _unit_round_off(weights, dtype: Any) -> float:
    return float(jnp.finfo(weights.dtype if dtype is None else dtype).eps) / 2
