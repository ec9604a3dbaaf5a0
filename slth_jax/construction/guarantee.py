"""What can be guaranteed of a given ticket, from its actual numbers.

The printed theorems need norms at most 1 and constants that nobody knows. Here the same argument
is carried through with the numbers of one ticket: the largest input norm, the spectral norms of
the target's merged matrices and of their differences from the ticket's, the sharper softmax bound
``2 tanh(e / 2)`` (`theory.sharp_softmax_error`), and a term for round-off. Everything is computed
in NumPy float64.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from slth_jax import checks
from slth_jax.construction import compared
from slth_jax.theory import sharp_softmax_error
from slth_jax.transformer import Block
from slth_jax.types import AttentionParams

# Relative error of exp, in units of round-off, that XLA's back ends stay within.
_EXP_ULPS = 4


class Guarantee(NamedTuple):
    """A bound on ``max_i ||ticket(x)_i - target(x)_i||`` for inputs with rows of bounded norm."""

    error: float  # the bound, round-off included
    round_off: float  # the part of `error` that stands for rounding
    trivial: float  # what holds for any two such networks: the sum of their largest outputs
    blocks: tuple[float, ...] = ()  # of a transformer: the bound behind each block

    @property
    def vacuous(self) -> bool:
        """Whether the bound says no more than the size of the outputs does."""
        return not self.error < self.trivial


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
        unit = compared.unit_round_off(source, dtype)
        ticket = compared.masked_attention(source, masks)
        return _attention_guarantee(ticket, compared.float64(target), max_norm, num_tokens, unit)
    unit = compared.unit_round_off(source[0].attention, dtype)
    return _blocks_guarantee(source, masks, target, max_norm, num_tokens, unit)


def _attention_guarantee(
    ticket: AttentionParams, target: AttentionParams, alpha: float, num_tokens: int, unit: float
) -> Guarantee:
    of_ticket, of_target = compared.norms(ticket), compared.norms(target)
    d_qk = compared.spectral(compared.w_qk(ticket) - compared.w_qk(target))
    d_vo = compared.spectral(compared.w_vo(ticket) - compared.w_vo(target))
    moved = np.array([_average(alpha**2 * d, alpha) for d in d_qk])
    difference = np.sum(moved * of_target.vo + alpha * d_vo)
    trivial = np.sum(alpha * (of_ticket.vo + of_target.vo))
    rounding = sum(
        round_off(part, params, alpha, num_tokens, unit)
        for part, params in ((of_ticket, ticket), (of_target, target))
    )
    return Guarantee(float(difference + rounding), float(rounding), float(trivial))


def _average(logits: float, alpha: float) -> float:
    """Return how far an average of rows of norm `alpha` moves with its logits."""
    return sharp_softmax_error(logits, alpha=alpha) if alpha else 0.0


def round_off(
    of: compared.Norms, params: AttentionParams, alpha: Any, num_tokens: int, unit: float
) -> np.ndarray:
    """Bound the rounding of `attention.apply`, first order in the unit round-off.

    `alpha` is the largest norm of a row: a number, or one for each sequence.
    """
    h, m, k = params.w_q.shape
    v = params.w_v.shape[-1]
    alpha = np.asarray(alpha, np.float64)[..., None]  # heads last
    logits = compared.gamma(2 * m + k + 4, unit) * alpha**2 * of.abs_qk
    exponent = unit * (2 * alpha**2 * of.qk + _EXP_ULPS)
    weights = 2 * np.expm1(np.minimum(exponent, 50.0)) + compared.gamma(num_tokens + 2, unit)
    sums = compared.gamma(num_tokens + m + v + h + 2, unit) * (1 + weights)
    return np.sum((logits + weights) * alpha * of.vo + sums * alpha * of.abs_vo, axis=-1)


def _blocks_guarantee(source, masks, target, alpha, num_tokens, unit) -> Guarantee:
    """Propagate the norm of the target's rows, the ticket's distance and round-off by block."""
    error, rounding = 0.0, 0.0
    errors = []
    for ticket, block in compared.paired(source, masks, target):
        of_target = compared.norms(block.attention)
        reached = alpha + error  # norm of the ticket's rows
        step = _attention_guarantee(ticket.attention, block.attention, reached, num_tokens, unit)
        logits = of_target.qk * error * (reached + alpha)
        moved = sum(
            (_average(change, reached) + error) * vo
            for change, vo in zip(logits, of_target.vo, strict=True)
        )
        hidden_error = error + step.error + moved + 2 * unit * (reached + step.trivial)
        hidden_norm = alpha * (1 + np.sum(of_target.vo))
        error, alpha, in_layers = _layers_error(ticket.layers, hidden_error, hidden_norm, unit)
        rounding += step.round_off + in_layers
        errors.append(float(error))
    # The ticket's rows are no longer than alpha + error: a bound below 2 alpha says something.
    return Guarantee(float(error), float(rounding), float(2 * alpha), tuple(errors))


def _layers_error(layers: Sequence[compared.Layer], error: float, norm: float, unit: float):
    """Return error, norm and round-off of ``F(y) + y`` for rows y of given error and norm."""
    in_error, in_norm = error, norm
    rounding = 0.0
    if not layers:
        return error, norm, rounding
    for layer in layers:
        reached = norm + error
        here = float(layer.rounding(reached, unit))
        rounding += here
        error = layer.both * reached + layer.norm * error + here
        norm = layer.norm * norm + float(np.linalg.norm(layer.b))
    final = 2 * unit * (norm + in_norm + error + in_error)
    return error + in_error + final, norm + in_norm, rounding + final
