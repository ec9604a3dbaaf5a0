"""A ticket beside its target, in NumPy float64: merged matrices, their differences and norms.

What the guarantees are made of; nothing here knows an input.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from slth_jax import checks
from slth_jax.construction import relu
from slth_jax.transformer import Block
from slth_jax.types import AttentionParams


class Norms(NamedTuple):
    """Spectral norms `[h]` of the merged matrices, and of products of the absolute factors."""

    qk: np.ndarray
    vo: np.ndarray
    abs_qk: np.ndarray
    abs_vo: np.ndarray


class Layer(NamedTuple):
    """A target's ReLU layer and what the ticket's pair of layers computes instead.

    The pair computes ``plus x+ + minus x-`` with ``x+ = max(x, 0)``, ``x- = min(x, 0)``: every
    unit listens to one coordinate, and ``relu(u x)`` is ``u x+`` for ``u > 0`` and ``u x-`` else.
    """

    w: np.ndarray  # [o, i]
    b: np.ndarray  # [o]
    d_plus: np.ndarray  # [o, i], plus - w
    d_minus: np.ndarray | None  # [o, i], minus - w; None where the input is never negative
    absolute: float  # norm of the absolute values, of ticket and target together
    terms: int  # in the longest sum of products

    @property
    def norm(self) -> float:
        """The spectral norm of the target's matrix."""
        return float(spectral(self.w))

    @property
    def differences(self) -> np.ndarray:
        """Both differences side by side, `[o, i or 2 i]`."""
        parts = [self.d_plus] if self.d_minus is None else [self.d_plus, self.d_minus]
        return np.concatenate(parts, axis=1)

    @property
    def both(self) -> float:
        """The spectral norm of `differences`."""
        return float(spectral(self.differences))

    def rounding(self, reached: Any, unit: float) -> Any:
        """Return the round-off, of ticket and target together, of rows of norm `reached`."""
        return gamma(self.terms, unit) * self.absolute * reached + 2 * unit * np.linalg.norm(self.b)


class Pair(NamedTuple):
    """A ticket's block beside the target's: its masked attention, its layers against theirs."""

    attention: AttentionParams
    layers: tuple[Layer, ...]


def paired(source, masks, target) -> list[tuple[Pair, Block]]:
    """Return each block of the ticket with the target's, in float64.

    Raises:
      ValueError: networks of different depth, shapes that do not fit, or a ReLU unit that is
        connected to more than one coordinate.
    """
    if not len(source) == len(masks) == len(target):
        raise checks.fail("source, masks and target", "of one length", (len(source), len(masks)))
    pairs = []
    for from_block, mask, to_block in zip(source, masks, target, strict=True):
        pair = Pair(
            masked_attention(from_block.attention, mask.attention),
            tuple(_layers(from_block.layers, mask.layers, to_block.layers)),
        )
        pairs.append((pair, Block(float64(to_block.attention), to_block.layers)))
    return pairs


def _layers(source, masks, target) -> list[Layer]:
    found = []
    for l, layer in enumerate(target):
        w = np.asarray(layer.w, np.float64)
        b = np.zeros(len(w)) if layer.b is None else np.asarray(layer.b, np.float64)
        if not masks:  # the target's own layer: it only carries the error on
            nothing = np.zeros_like(w)
            absolute = 2 * float(spectral(abs(w)))
            found.append(Layer(w, b, nothing, None, absolute, w.shape[1] + 2))
            continue
        first, second = source[2 * l], source[2 * l + 1]
        w1 = _masked(first.w, masks[2 * l].w)
        w2 = _masked(second.w, masks[2 * l + 1].w)
        relu.validate_biases(first, second, layer)
        most = int(np.count_nonzero(w1, axis=1).max(initial=0))
        if most > 1:
            raise checks.fail("masks", "one coordinate a ReLU unit", f"a unit with {most}")
        plus, minus = w2 @ np.where(w1 > 0, w1, 0), w2 @ np.where(w1 < 0, w1, 0)
        absolute = float(spectral(abs(w2) @ abs(w1)) + spectral(abs(w)))
        d_minus = minus - w if l == 0 else None
        found.append(Layer(w, b, plus - w, d_minus, absolute, sum(w1.shape) + 4))
    return found


def norms(params: AttentionParams) -> Norms:
    """Return the spectral norms of each head of float64 projections."""
    absolute: AttentionParams = jax.tree.map(abs, params)
    matrices = (w_qk(params), w_vo(params), w_qk(absolute), w_vo(absolute))
    return Norms(*map(spectral, matrices))


def w_qk(params: AttentionParams) -> np.ndarray:
    """Return the merged query-key matrices `[h, m, m]`."""
    return params.w_q @ np.swapaxes(params.w_k, 1, 2) / np.sqrt(float(params.key_width))


def w_vo(params: AttentionParams) -> np.ndarray:
    """Return the merged value-output matrices `[h, m, o]`."""
    return np.asarray(params.w_v @ params.w_o)


def float64(params: AttentionParams) -> AttentionParams:
    """Return projections in NumPy float64."""
    return jax.tree.map(lambda w: np.asarray(w, np.float64), params)


def masked_attention(source: AttentionParams, masks: AttentionParams) -> AttentionParams:
    """Return the ticket's projections in NumPy float64."""
    masked = map(_masked, source, masks)
    named: dict[str, Any] = dict(zip(source._fields, masked, strict=True))
    return float64(source)._replace(**named)


def _masked(weight, mask) -> np.ndarray:
    weight, mask = np.asarray(weight, np.float64), np.asarray(mask)
    if weight.shape != mask.shape:
        raise checks.fail("masks", f"of the shapes of source ({weight.shape})", mask.shape)
    return weight * mask


def spectral(matrices: np.ndarray) -> np.ndarray:
    """Return the spectral norms of the matrices in the last two axes."""
    return np.asarray(np.linalg.norm(matrices, 2, axis=(-2, -1)))


def gamma(n: int, unit: float) -> float:
    """Return Higham's ``n u / (1 - n u)``: relative error of a sum of n products."""
    return n * unit / (1 - n * unit) if n * unit < 1 else np.inf


def unit_round_off(attention: AttentionParams, dtype: Any) -> float:
    """Return half the spacing at 1 of `dtype`, or of the projections' where it is None."""
    return float(jnp.finfo(attention.w_q.dtype if dtype is None else dtype).eps) / 2
