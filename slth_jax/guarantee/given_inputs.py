"""A much tighter bound on the error of a ticket, which holds for given inputs only.

The target is computed on the inputs; the ticket is not. The effect of the weight differences
between ticket and target is computed exactly on the target's activations y. The distance between
the ticket's activations and y is at most eps, which is computed from norms at y. The numbered steps
and their proofs are in ``docs/guarantee.md``. The docstring of `pairs` lists all symbols.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from slth_jax import checks
from slth_jax.guarantee import all_inputs, pairs
from slth_jax.guarantee.pairs import Floats, Layer, Network, Pair
from slth_jax.transformer import Block
from slth_jax.types import ArrayLike, Projections

# The largest number of entries of an array; sequences are sliced accordingly. 2^23 are 64 MiB.
_ENTRIES = 1 << 23


class OnInputs(NamedTuple):
    """Bounds on ``||ticket(x)_i - target(x)_i||`` for the rows i of given sequences x."""

    blocks: Float[Floats, "b s t"]  # the error bound of each row after each block, with round-off
    norms: Float[Floats, "b s t"]  # the norms of the target's rows
    round_off: Float[Floats, " s"]  # the part that is due to rounding, summed over blocks

    @property
    def rows(self) -> Float[Floats, "s t"]:
        """The error bound of each row of the output."""
        return self.blocks[-1]

    @property
    def error(self) -> Float[Floats, " s"]:
        """For each sequence, the bound on the largest error of a row."""
        return self.rows.max(axis=-1)

    @property
    def vacuous(self) -> Bool[np.ndarray, " s"]:
        """Whether a sequence has a row whose bound is at least the norm of the target's row."""
        return ~np.all(self.rows < self.norms[-1], axis=-1)


def guaranteed_error_on(
    source: Projections | Sequence[Block],
    masks: Projections | Sequence[Block],
    target: Projections | Sequence[Block],
    inputs: ArrayLike,
    attn_mask: ArrayLike | None = None,
    *,
    dtype: Any = None,
) -> Any:
    """Bound ``max_i ||ticket(x)_i - target(x)_i||``, the error of a ticket, on given sequences x.

    `guaranteed_error` holds for every input whose rows have at most a given norm, whereas
    `guaranteed_error_on` holds for `inputs` only. For the norms and lengths of `inputs`, the bound
    of `guaranteed_error_on` is never larger, and usually far smaller.

    At the target's rows y the logits of ticket and target differ by ``y_i D y_j``. From this
    difference and the target's attention weights, the change of each attention weight is bounded. A
    ReLU unit adds to the bound only if it may be active. The effect of errors in earlier blocks is
    bounded by norms at the target's rows.

    Args:
      source, masks, target: attention layers or sequences of blocks, and the ticket's masks.
      inputs: sequences `[s, t, m]`, or one sequence `[t, m]`.
      attn_mask: booleans `[t, t]`, True if token i may attend to token j; None if all may.
      dtype: as in `guaranteed_error`.

    Returns:
      The bound of each sequence, `[s]` (a scalar for one sequence), in NumPy float64.
      `guarantee_on` returns the bound of each row after each block.

    Raises:
      ValueError: shapes do not fit, a row of `attn_mask` attends to nothing, or the target's keys
        and values have inputs of other widths than the target's queries.
    """
    bounds = guarantee_on(source, masks, target, inputs, attn_mask, dtype=dtype).error
    return bounds[0] if np.ndim(inputs) == 2 else bounds


def guarantee_on(source, masks, target, inputs, attn_mask=None, *, dtype: Any = None) -> OnInputs:
    """Return the bound of `guaranteed_error_on` per row and block; the arguments are the same."""
    network = pairs.compare(source, masks, target, dtype)
    x = np.asarray(np.asarray(inputs, network.dtype), np.float64)
    x = x[None] if x.ndim == 2 else x
    pairs.refuse_cross("target", network.pairs[0].T)
    m = network.pairs[0].T.A.shape[-1]
    if x.ndim != 3 or x.shape[-1] != m or not np.all(np.isfinite(x)):
        raise checks.fail("inputs", f"finite, of shape (any, any, {m})", f"shape {x.shape}")
    t = x.shape[1]
    if not t or not len(x):
        raise checks.fail("inputs", "sequences of at least one token", f"shape {x.shape}")
    allowed = np.ones((t, t), bool) if attn_mask is None else np.asarray(attn_mask, bool)
    if allowed.shape != (t, t) or not allowed.any(axis=1).all():
        allows = f"of shape ({t}, {t}), True at least once in every row"
        raise checks.fail("attn_mask", allows, f"shape {allowed.shape}")
    widest = max([t * m, *(len(layer.W) for pair in network.pairs for layer in pair.layers)])
    size = max(1, _ENTRIES // (t * widest))
    parts = [_bounds(network, y, allowed) for y in _slices(x, size)]
    blocks, norms, round_off = zip(*parts, strict=True)
    return OnInputs(
        np.concatenate(blocks, axis=1), np.concatenate(norms, axis=1), np.concatenate(round_off)
    )


def _bounds(network: Network, y: Float[Floats, "s t m"], allowed: Bool[np.ndarray, "t t"]):
    """Return the arrays of `OnInputs` for the sequences y, a part of all sequences."""
    unit = network.unit
    for_all = all_inputs.propagate(network, np.max(_norm(y), axis=-1), y.shape[1])
    eps, round_off = np.zeros(y.shape[:2]), np.zeros(len(y))  # [s, t], [s]
    bounds, norms = [], []
    for pair, limit in zip(network.pairs, for_all.errors, strict=True):
        attended, change, step_off = _attention(pair, y, eps, allowed, unit)
        round_off = round_off + step_off
        if network.residual:
            alpha = np.max(_norm(y) + eps, axis=-1)
            adding = 2 * unit * alpha * (1 + np.sum(pair.S.norm_W + pair.T.norm_W))
            y, eps = y + attended, eps + change + adding[:, None]
        else:
            y, eps = attended, change
        if pair.layers:
            y, eps, step_off = _layers(pair.layers, y, eps, unit)
            round_off = round_off + step_off
        # If errors are large, the sum of norms taken at single rows may exceed the bound that holds
        # for all inputs.
        eps = np.minimum(eps, limit[:, None])
        bounds.append(eps)
        norms.append(_norm(y))
    return np.stack(bounds), np.stack(norms), round_off


def _attention(
    pair: Pair,
    y: Float[Floats, "s t m"],
    eps: Float[Floats, "s t"],
    allowed: Bool[np.ndarray, "t t"],
    unit: float,
) -> tuple[Float[Floats, "s t o"], Float[Floats, "s t"], Float[Floats, " s"]]:
    """Return the target's attention at `y`, a bound on the ticket's error, and its rounding part.

    The computation is steps 1 to 3 of ``docs/guarantee.md``. `eps` bounds the distance between the
    ticket's input rows and y.
    """
    y_T = np.swapaxes(y, 1, 2)  # [s, m, t]
    S, T = pair.S, pair.T
    attended = np.zeros((*y.shape[:2], T.W.shape[-1]))
    differ = np.zeros_like(attended)  # sum_h sum_j p_ij y_j V, the effect of V
    moved = np.zeros(y.shape[:2])  # the effect of changed attention weights
    q = []  # per head [s, t]: the effect of errors in earlier blocks
    for h, norm_A_S in enumerate(S.norm_A):
        logits = np.where(allowed, y @ T.A[h] @ y_T, -np.inf)  # [s, t, t]
        p = np.exp(logits - np.max(logits, axis=-1, keepdims=True))
        p /= np.sum(p, axis=-1, keepdims=True)
        d = y @ pair.D[h] @ y_T  # [s, t, t]
        y_A, A_y = _norm(y @ S.A[h]), _norm(y @ S.A[h].T)  # ||y_i A_S||, ||A_S y_j||
        r = _outer(eps, A_y) + _outer(y_A, eps) + norm_A_S * _outer(eps, eps)
        m, s = _weights_moved(logits, p, d, r, allowed)
        v = y @ S.W[h]  # [s, t, o]
        c = p @ v
        apart = _norm(v[:, None] - c[:, :, None])  # ||v_j - c_i||, [s, t, t]
        farthest = np.max(np.where(allowed, apart, 0), axis=-1)
        moved += np.minimum(np.sum(m * apart, axis=-1), s * farthest)
        attended = attended + p @ (y @ T.W[h])
        differ = differ + p @ (y @ pair.V[h])
        largest = np.max(np.where(allowed, eps[:, None], 0), axis=-1)
        drift = np.minimum(np.sum(m * eps[:, None], axis=-1), s / 2 * largest)
        q.append((p @ eps[..., None])[..., 0] + drift)
    by_head = np.tensordot(S.norm_W, q, axes=1)
    stacked = float(_norm_of_stack(S.W)) * np.sqrt(np.sum(np.square(q), axis=0))
    alpha = np.max(_norm(y) + eps, axis=-1)
    round_off = pair.round_off(alpha, y.shape[1], unit)
    bound = moved + _norm(differ) + np.minimum(by_head, stacked) + round_off[:, None]
    return attended, bound, round_off


def _norm_of_stack(W: Float[Floats, "h m o"]) -> Float[Floats, ""]:
    """Return the spectral norm of the matrices of all heads, stacked vertically."""
    return pairs.spectral(W.reshape(-1, W.shape[-1]))


def _weights_moved(
    logits: Float[Floats, "s t t"],
    p: Float[Floats, "s t t"],
    d: Float[Floats, "s t t"],
    r: Float[Floats, "s t t"],
    allowed: Bool[np.ndarray, "t t"],
) -> tuple[Float[Floats, "s t t"], Float[Floats, "s t"]]:
    """Bound the change of softmax weights p if logits change by between d - r and d + r (step 2).

    Returns:
      m, the bound for each weight; and s, the bound for the sum over a row, which may be smaller
      than the sum of m:
        ``2 tanh((max hi - min lo) / 4)``.
    """
    several = allowed.sum(axis=-1) > 1
    hi = np.where(allowed, logits + d + r, -np.inf)
    lo = np.where(allowed, logits + d - r, -np.inf)
    top = np.max(hi, axis=-1, keepdims=True)
    exp_hi, exp_lo = np.exp(hi - top), np.exp(lo - top)
    # A weight is largest if its logit is as high and all other logits are as low as possible.
    other_hi = np.maximum(np.sum(exp_hi, axis=-1, keepdims=True) - exp_hi, 0)
    other_lo = np.maximum(np.sum(exp_lo, axis=-1, keepdims=True) - exp_lo, 0)
    most = np.divide(exp_hi, exp_hi + other_lo, out=np.ones_like(p), where=exp_hi + other_lo > 0)
    least = np.divide(exp_lo, exp_lo + other_hi, out=np.zeros_like(p), where=exp_lo + other_hi > 0)
    m = np.where(several[:, None] & allowed, np.maximum(most - p, p - least), 0)
    widest = np.max(np.where(allowed, d + r, -np.inf), axis=-1) - np.min(
        np.where(allowed, d - r, np.inf), axis=-1
    )
    return np.maximum(m, 0), np.where(several, 2 * np.tanh(widest / 4), 0)


def _layers(
    layers: Sequence[Layer], y: Float[Floats, "s t i"], eps: Float[Floats, "s t"], unit: float
) -> tuple[Float[Floats, "s t i"], Float[Floats, "s t"], Float[Floats, " s"]]:
    """Return the target's ``F(y) + y``, a bound on the error, and its rounding part (step 4)."""
    x, in_eps, total = y, eps, np.zeros(len(y))
    for l, layer in enumerate(layers):
        u = np.maximum(x, 0) @ layer.D_plus.T  # the source layers' error on these rows, [s, t, o]
        if layer.D_minus is not None:
            u = u + np.minimum(x, 0) @ layer.D_minus.T
        round_off = layer.round_off(np.max(_norm(x) + eps, axis=-1), unit)  # [s]
        total = total + round_off
        slope = layer.norm + layer.L
        x = x @ layer.W.T + layer.b
        if l == len(layers) - 1:
            eps = slope * eps + _norm(u) + round_off[:, None]
            continue
        slopes = np.linalg.norm(layer.W, axis=1) + np.linalg.norm(layer.differences, axis=1)
        t = eps[..., None] * slopes + np.abs(u) + round_off[:, None, None]  # [s, t, units]
        # A unit that is inactive in both networks passes nothing on.
        passed = np.where(x > 0, t, np.maximum(x + t, 0))
        whole = slope * eps + _norm(np.where(passed > 0, u, 0)) + round_off[:, None]
        eps = np.minimum(whole, _norm(passed))
        x = np.maximum(x, 0)
    largest = np.max(_norm(x) + _norm(y) + eps + in_eps, axis=-1)
    final = 2 * unit * largest
    return x + y, eps + in_eps + final[:, None], total + final


def _norm(x: Float[Floats, "*s n"]) -> Float[Floats, "*s"]:
    return np.linalg.norm(x, axis=-1)


def _outer(a: Float[Floats, "s t"], b: Float[Floats, "s t"]) -> Float[Floats, "s t t"]:
    return a[:, :, None] * b[:, None, :]


def _slices(x: Float[Floats, "s t m"], size: int) -> Iterator[Float[Floats, "_ t m"]]:
    return (x[i : i + size] for i in range(0, len(x), size))
