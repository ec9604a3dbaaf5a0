"""The merged matrices of a ticket and its target, their differences and norms, in float64.

Matrices, differences and norms do not depend on any input. In the whole subpackage, the symbols of
docs/guarantee.md have these names:

| symbol | name |
| --- | --- |
| A_T, A_S (query-key, divided by the root of k) | `Pair.T.A`, `Pair.S.A` |
| W_T, W_S (value-output) | `Pair.T.W`, `Pair.S.W` |
| D = A_S - A_T, V = W_S - W_T | `Pair.D`, `Pair.V` |
| their spectral norms | `norm_A`, `norm_W`, `norm_D`, `norm_V` |
| W, P - W, M - W and L of a ReLU layer | `Layer.W`, `Layer.D_plus`, `Layer.D_minus`, `Layer.L` |
| alpha, eps | `alpha`, `eps` |
| y, d, r, lo, hi, p, m, s, v, c, q, u, t | the same letters in `given_inputs` |
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from slth_jax import checks
from slth_jax.transformer import Block, Linear, validate_biases
from slth_jax.types import Projections

Floats = np.ndarray
# The largest relative error of exp in XLA's back ends, as a multiple of the unit round-off.
_EXP_ULPS = 4


class Merged(NamedTuple):
    """The merged matrices of one attention layer, and their norms; the first axis is the head."""

    A: Float[Floats, "h m n"]  # w_q w_k^T / sqrt(k)
    W: Float[Floats, "h l o"]  # w_v w_o
    norm_A: Float[Floats, " h"]
    norm_W: Float[Floats, " h"]
    norm_abs_A: Float[Floats, " h"]  # the norm of |w_q| |w_k|^T / sqrt(k)
    norm_abs_W: Float[Floats, " h"]
    widths: tuple[int, int]  # k and v

    def round_off(self, alpha: Any, num_tokens: int, unit: float) -> Float[Floats, "*s"]:
        """Bound the round-off of `attention.apply` to first order in the unit round-off.

        `alpha` is the largest norm of a row, as one number or as one number per sequence.
        """
        (k, v), (h, m, n), l = self.widths, self.A.shape, self.W.shape[1]
        alpha = np.asarray(alpha, np.float64)[..., None]  # [*s, h]
        logits = gamma(m + n + k + 4, unit) * alpha**2 * self.norm_abs_A
        exponent = unit * (2 * alpha**2 * self.norm_A + _EXP_ULPS)
        weights = 2 * np.expm1(np.minimum(exponent, 50.0)) + gamma(num_tokens + 2, unit)
        sums = gamma(num_tokens + l + v + h + 2, unit) * (1 + weights)
        parts = (logits + weights) * alpha * self.norm_W + sums * alpha * self.norm_abs_W
        return np.sum(parts, axis=-1)


class Layer(NamedTuple):
    """A ReLU layer W of the target, and the two source layers that approximate it.

    The two source layers compute ``P x+ + M x-`` with ``x+ = max(x, 0)``, ``x- = min(x, 0)``. Every
    hidden unit is connected to one coordinate of x, by a weight a, and ``relu(a x)`` is ``a x+`` if
    ``a > 0`` and ``a x-`` if ``a < 0``.
    """

    W: Float[Floats, "o i"]
    b: Float[Floats, " o"]
    D_plus: Float[Floats, "o i"]  # P - W
    D_minus: Float[Floats, "o i"] | None  # M - W; None if the input is never negative
    absolute: float  # the norms of the matrices' absolute values, ticket plus target
    terms: int  # the number of terms in the longest sum of products

    @property
    def norm(self) -> float:
        """The spectral norm of the target's matrix W."""
        return float(spectral(self.W))

    @property
    def differences(self) -> Floats:
        """``[P - W, M - W]``, `[o, i or 2 i]`."""
        parts = [self.D_plus] if self.D_minus is None else [self.D_plus, self.D_minus]
        return np.concatenate(parts, axis=1)

    @property
    def L(self) -> float:
        """The spectral norm of `differences`."""
        return float(spectral(self.differences))

    def round_off(self, alpha: Any, unit: float) -> Any:
        """Bound the round-off of this layer, ticket plus target, for rows of norm `alpha`."""
        return gamma(self.terms, unit) * self.absolute * alpha + 2 * unit * np.linalg.norm(self.b)


class Pair(NamedTuple):
    """The same block of ticket (S) and target (T), with the differences of merged matrices."""

    S: Merged
    T: Merged
    D: Float[Floats, "h m n"]
    V: Float[Floats, "h l o"]
    norm_D: Float[Floats, " h"]
    norm_V: Float[Floats, " h"]
    layers: tuple[Layer, ...]

    def round_off(self, alpha: Any, num_tokens: int, unit: float) -> Float[Floats, "*s"]:
        """Bound the round-off of attention, ticket plus target, for rows of norm `alpha`."""
        return self.S.round_off(alpha, num_tokens, unit) + self.T.round_off(alpha, num_tokens, unit)


class Network(NamedTuple):
    """All blocks of ticket and target, and the dtype in which both are computed."""

    pairs: tuple[Pair, ...]
    residual: bool  # False for attention alone, without residual sums and layers
    dtype: np.dtype  # the dtype of the computation
    unit: float  # the unit round-off of the dtype


def compare(source: Any, masks: Any, target: Any, dtype: Any) -> Network:
    """Round all weights to the dtype of computation, and pair the blocks of ticket and target.

    Args:
      source, masks, target: attention or sequences of blocks, as in `guaranteed_error`.
      dtype: the dtype in which the networks are computed; None for the dtype that JAX gives the
        weights: NumPy's float64 becomes float32 unless JAX's 64-bit mode is on.

    Raises:
      ValueError: the networks have different depths, shapes do not fit, or a ReLU unit is connected
        to more than one coordinate.
    """
    alone = isinstance(target, Projections)
    networks = {"source": source, "masks": masks, "target": target}
    for name, network in networks.items():
        if alone:
            checks.record(name, network, Projections)
        else:
            checks.sequence(name, network, Block)
    if alone:
        source, masks, target = ((Block(part, ()),) for part in (source, masks, target))
    if not len(source) == len(masks) == len(target):
        raise checks.fail("source, masks and target", "of one length", (len(source), len(masks)))
    if dtype is None:
        given = (block.attention.w_q.dtype for block in (*source, *target))
        dtype = max(map(jax.dtypes.canonicalize_dtype, given), key=lambda d: jnp.finfo(d).eps)
    try:
        dtype = jnp.dtype(dtype)
    except TypeError:
        dtype = None
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise checks.fail("dtype", "a floating-point dtype", repr(dtype))
    pairs = tuple(
        _pair(from_block, mask, to_block, dtype)
        for from_block, mask, to_block in zip(source, masks, target, strict=True)
    )
    for pair in () if alone else pairs:
        refuse_cross("target", pair.T)
    return Network(pairs, not alone, dtype, float(jnp.finfo(dtype).eps) / 2)


def refuse_cross(name: str, merged: Merged) -> None:
    """Refuse cross-attention if keys and values have inputs of other widths than queries."""
    (_, m, n), l = merged.A.shape, merged.W.shape[1]
    if not m == n == l:
        raise checks.fail(name, "self-attention", f"inputs of widths {m}, {n} and {l}")


def _pair(source: Block, masks: Block, target: Block, dtype: np.dtype) -> Pair:
    for name, block in (("source", source), ("target", target)):
        _check_shapes(name, block.attention)
    ticket = _merged(source.attention, masks.attention, dtype)
    of_target = _merged(target.attention, None, dtype)
    sizes, given = ((*part.A.shape, *part.W.shape[1:]) for part in (of_target, ticket))
    if sizes != given:
        raise checks.fail("source", f"of the target's heads and widths {sizes}", given)
    D, V = ticket.A - of_target.A, ticket.W - of_target.W
    layers = tuple(_layers(source.layers, masks.layers, target.layers, dtype))
    return Pair(ticket, of_target, D, V, spectral(D), spectral(V), layers)


def _check_shapes(name: str, params: Projections) -> None:
    """Refuse projections whose heads or widths do not fit together."""
    (h, m, k), (_, n, _), (g, l, v) = (_shape(name, params, f) for f in ("w_q", "w_k", "w_v"))
    if 0 in (h, m, k, n, l):
        raise checks.fail(f"{name}.w_q", "an array without empty dimensions", f"shape {(h, m, k)}")
    if not g or h % g:
        raise checks.fail(f"{name}.w_v", f"of a number of heads that divides {h}", g)
    *_, o = _shape(name, params, "w_o")
    for field, shape in {"w_k": (g, n, k), "w_v": (g, l, v), "w_o": (h, v, o)}.items():
        if np.shape(getattr(params, field)) != shape:
            given = f"shape {np.shape(getattr(params, field))}"
            raise checks.fail(f"{name}.{field}", f"of shape {shape}", given)


def _shape(name: str, params: Projections, field: str) -> tuple[int, ...]:
    shape = np.shape(getattr(params, field))
    if len(shape) != 3:
        raise checks.fail(f"{name}.{field}", "an array of 3 dimensions", f"shape {shape}")
    return shape


def _merged(params: Projections, masks: Projections | None, dtype: np.dtype) -> Merged:
    names = ("w_q", "w_k", "w_v", "w_o")
    w_q, w_k, w_v, w_o = (
        _weights(getattr(params, name), masks and getattr(masks, name), dtype) for name in names
    )
    w_k, w_v = (np.repeat(w, len(w_q) // len(w), axis=0) for w in (w_k, w_v))  # grouped queries
    root = np.sqrt(float(params.key_width))
    A, W = w_q @ np.swapaxes(w_k, 1, 2) / root, w_v @ w_o
    abs_A, abs_W = abs(w_q) @ np.swapaxes(abs(w_k), 1, 2) / root, abs(w_v) @ abs(w_o)
    norm_A, norm_W, norm_abs_A, norm_abs_W = map(spectral, (A, W, abs_A, abs_W))
    widths = (w_q.shape[2], w_v.shape[2])
    return Merged(A, W, norm_A, norm_W, norm_abs_A, norm_abs_W, widths)


def _layers(
    source: Sequence[Linear], masks: Sequence[Linear], target: Sequence[Linear], dtype: np.dtype
) -> list[Layer]:
    layers = []
    for l, layer in enumerate(target):
        W = _weights(layer.w, None, dtype)
        b = np.zeros(len(W)) if layer.b is None else _weights(layer.b, None, dtype)
        if not masks:  # the ticket uses the target's layer, which only propagates errors
            absolute = 2 * float(spectral(abs(W)))
            layers.append(Layer(W, b, np.zeros_like(W), None, absolute, W.shape[1] + 2))
            continue
        first, second = source[2 * l], source[2 * l + 1]
        w1 = _weights(first.w, masks[2 * l].w, dtype)  # [n, i]
        w2 = _weights(second.w, masks[2 * l + 1].w, dtype)  # [o, n]
        validate_biases(first, second, layer)
        most = int(np.count_nonzero(w1, axis=1).max(initial=0))
        if most > 1:
            raise checks.fail("masks", "one coordinate a ReLU unit", f"a unit with {most}")
        P, M = w2 @ np.where(w1 > 0, w1, 0), w2 @ np.where(w1 < 0, w1, 0)
        absolute = float(spectral(abs(w2) @ abs(w1)) + spectral(abs(W)))
        # The output of a ReLU is never negative.
        D_minus = M - W if l == 0 else None
        layers.append(Layer(W, b, P - W, D_minus, absolute, sum(w1.shape) + 4))
    return layers


def _weights(weight: Any, mask: Any, dtype: np.dtype) -> Floats:
    """Round a weight to `dtype`, multiply it by its mask, and return the result in float64."""
    with np.errstate(over="ignore"):  # refused below
        weight = np.asarray(np.asarray(weight).astype(dtype), np.float64)
    if not np.all(np.isfinite(weight)):
        raise checks.fail("weights", f"finite in {dtype}", "NaN or infinity")
    if mask is None:
        return weight
    mask = np.asarray(mask)
    if weight.shape != mask.shape or mask.dtype != bool:
        allowed = f"booleans of the shapes of source ({weight.shape})"
        raise checks.fail("masks", allowed, f"{mask.dtype} {mask.shape}")
    return weight * mask


def spectral(matrices: Float[Floats, "*h a b"]) -> Float[Floats, "*h"]:
    """Return the spectral norms of the matrices in the last two axes."""
    return np.asarray(np.linalg.norm(matrices, 2, axis=(-2, -1)))


def gamma(n: int, unit: float) -> float:
    """Return Higham's bound ``n u / (1 - n u)`` on the relative error of a sum of n products."""
    return n * unit / (1 - n * unit) if n * unit < 1 else np.inf
