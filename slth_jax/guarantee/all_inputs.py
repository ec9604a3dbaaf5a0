"""A bound on a ticket's error for all inputs whose rows have at most a given norm.

The theorems in the paper assume target matrices of spectral norm at most 1, and contain unknown
constants. This module applies the argument of the theorems to the weights of one ticket. The bound
depends on the largest input norm alpha, on spectral norms of the target's merged matrices, and on
spectral norms of the differences between the merged matrices of ticket and target. The softmax
bound ``2 tanh(e / 2)`` (`theory.sharp_softmax_error`) is sharper than in the paper, and a term for
round-off is added. The docstring of `pairs` lists all symbols.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from slth_jax import checks
from slth_jax.guarantee import pairs
from slth_jax.guarantee.pairs import Floats, Layer, Network, Pair
from slth_jax.transformer import Block
from slth_jax.types import Projections


class Guarantee(NamedTuple):
    """A bound on ``max_i ||ticket(x)_i - target(x)_i||`` for all x whose rows have bounded norm."""

    error: float  # the bound, including round-off
    round_off: float  # the part of `error` that is due to rounding
    size: float  # a bound on the norm of the rows of the target's output
    blocks: tuple[float, ...] = ()  # for a transformer, the bound after each block

    @property
    def vacuous(self) -> bool:
        """Whether the bound is useless: `error` >= `size`, the bound for an output of all zeros."""
        return not self.error < self.size


class Steps(NamedTuple):
    """The error bound after each block; the rows of sequence s have norms of at most alpha[s]."""

    errors: Float[Floats, "b s"]
    round_off: Float[Floats, " s"]  # the part that is due to rounding, summed over blocks
    size: Float[Floats, " s"]  # a bound on the norm of the target's rows after the last block


def guaranteed_error(
    source: Projections | Sequence[Block],
    masks: Projections | Sequence[Block],
    target: Projections | Sequence[Block],
    max_norm: float,
    *,
    num_tokens: int = 1024,
    dtype: Any = None,
) -> float:
    """Bound the error of a ticket on all inputs whose rows have 2-norm at most `max_norm`.

    For one head, ``||p_S X W_S - p_T X W_T|| <= 2 tanh(e / 2) alpha ||W_T|| + alpha ||V||`` with
    ``e = alpha^2 ||D||``, ``alpha = max_norm`` (`pairs` lists the symbols). The bounds of all heads
    are added. The bounds on norms and errors after one block hold for the inputs of the next block.
    The bound holds for every attention mask. Except for its round-off term, the bound also holds
    for every number of tokens. For cross-attention `max_norm` also bounds the rows of the memory,
    the input of keys and values.

    Args:
      source: the unmasked random weights, either of attention or of a sequence of transformer
        blocks.
      masks: the masks that `construction` returned for `source`. If the masks of a block have no
        layers, the ticket uses the target's ReLU network in this block.
      target: the network to approximate.
      max_norm: the largest 2-norm of a row of the input.
      num_tokens: the largest number of tokens, which only affects the round-off term.
      dtype: the dtype in which ticket and target are computed; None for the dtype that JAX gives
        the weights: NumPy's float64 becomes float32 unless JAX's 64-bit mode is on. Round-off is
        bounded to first order, for full-precision matrix products.

    Returns:
      The bound. `guarantee` also returns the terms of the bound, and `is_vacuous` returns whether
      the bound is too large to be useful.

    Raises:
      ValueError: shapes do not fit, weights are not finite, masks are not booleans, or `max_norm`
        is negative.
    """
    return guarantee(source, masks, target, max_norm, num_tokens=num_tokens, dtype=dtype).error


def is_vacuous(source, masks, target, max_norm: float, **options) -> bool:
    """Return whether `guaranteed_error` is at least the bound on the target's output norm."""
    return guarantee(source, masks, target, max_norm, **options).vacuous


def guarantee(
    source, masks, target, max_norm: float, *, num_tokens: int = 1024, dtype: Any = None
) -> Guarantee:
    """Return the bound of `guaranteed_error` with its terms; the arguments are the same."""
    max_norm = checks.number("max_norm", max_norm, low=0)
    checks.integer("num_tokens", num_tokens, low=1)
    network = pairs.compare(source, masks, target, dtype)
    steps = propagate(network, np.array([max_norm]), num_tokens)
    errors = tuple(map(float, steps.errors[:, 0]))
    blocks = errors if network.residual else ()
    return Guarantee(errors[-1], float(steps.round_off[0]), float(steps.size[0]), blocks)


def propagate(network: Network, alpha: Float[Floats, " s"], num_tokens: int) -> Steps:
    """Bound the error, the round-off and the norm of the target's rows after each block.

    `alpha` bounds the norm of the rows of each sequence before the first block.
    """
    error, rounding = np.zeros_like(alpha), np.zeros_like(alpha)
    errors, unit = [], network.unit
    for pair in network.pairs:
        reached = alpha + error  # the norm of the ticket's rows
        step, round_off = _attention(pair, reached, num_tokens, unit)
        norm_W = np.sum(pair.T.norm_W)
        rounding = rounding + round_off
        if not network.residual:
            return Steps(step[None], rounding, alpha * norm_W)
        # The ticket's rows are up to `error` away from the target's. With rows so far away even the
        # target would compute another attention.
        logits = pair.T.norm_A[:, None] * error * (reached + alpha)  # [h, s]
        moved = np.sum((_average(logits, reached) + error) * pair.T.norm_W[:, None], axis=0)
        both = reached * (1 + np.sum(pair.S.norm_W) + norm_W)
        hidden = error + step + moved + 2 * unit * both
        error, alpha, in_layers = _layers(pair.layers, hidden, alpha * (1 + norm_W), unit)
        rounding = rounding + in_layers
        errors.append(error)
    return Steps(np.stack(errors), rounding, alpha)


def _attention(
    pair: Pair, alpha: Float[Floats, " s"], num_tokens: int, unit: float
) -> tuple[Float[Floats, " s"], Float[Floats, " s"]]:
    """Bound the difference of ticket and target on equal inputs; return (bound, round-off)."""
    moved = _average(alpha**2 * pair.norm_D[:, None], alpha)  # [h, s]
    difference = np.sum(moved * pair.T.norm_W[:, None] + alpha * pair.norm_V[:, None], axis=0)
    round_off = pair.round_off(alpha, num_tokens, unit)
    return difference + round_off, round_off


def _average(e: Float[Floats, "h s"], alpha: Float[Floats, " s"]) -> Float[Floats, "h s"]:
    """Bound how much a softmax average of rows of norm alpha changes if its logits change by e."""
    return 2 * np.tanh(e / 2) * alpha


def _layers(
    layers: Sequence[Layer], error: Float[Floats, " s"], norm: Float[Floats, " s"], unit: float
) -> tuple[Float[Floats, " s"], Float[Floats, " s"], Float[Floats, " s"]]:
    """Bound error, norm and round-off of ``F(y) + y``, given bounds `error` and `norm` for y."""
    in_error, in_norm, rounding = error, norm, np.zeros_like(norm)
    if not layers:
        return error, norm, rounding
    for layer in layers:
        reached = norm + error
        round_off = layer.round_off(reached, unit)
        rounding = rounding + round_off
        error = layer.L * reached + layer.norm * error + round_off
        norm = layer.norm * norm + np.linalg.norm(layer.b)
    final = 2 * unit * (norm + in_norm + error + in_error)
    return error + in_error + final, norm + in_norm, rounding + final
