"""What can be guaranteed of a ticket on given inputs: a statement for these alone, but a sharp one.

The target is run on the inputs, the ticket is not. What the differences of the merged matrices make
of the target's own rows is computed; where the ticket's rows have left the target's, measured
norms at those rows take over. The inequalities and their proofs stand in ``docs/guarantee.md``.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from slth_jax import checks
from slth_jax.construction import compared
from slth_jax.construction.guarantee import round_off
from slth_jax.transformer import Block
from slth_jax.types import ArrayLike, AttentionParams

# Entries of the largest array of one slice of the sequences: 2^23 are 64 MiB.
_ENTRIES = 1 << 23


class OnInputs(NamedTuple):
    """Bounds on ``||ticket(x)_i - target(x)_i||`` for the rows i of given sequences x."""

    blocks: np.ndarray  # [b, s, t], the bound of each row behind each block, round-off included
    norms: np.ndarray  # [b, s, t], of the target's rows there
    round_off: np.ndarray  # [s], the part that rounding itself adds, block after block

    @property
    def rows(self) -> np.ndarray:
        """The bound of each row of the output, `[s, t]`."""
        return self.blocks[-1]

    @property
    def error(self) -> np.ndarray:
        """The bound on the largest error of a row, `[s]`."""
        return self.rows.max(axis=-1)

    @property
    def vacuous(self) -> np.ndarray:
        """Whether some row of a sequence may err by its own norm or more, `[s]`."""
        return ~np.all(self.rows < self.norms[-1], axis=-1)


def guaranteed_error_on(
    source: AttentionParams | Sequence[Block],
    masks: AttentionParams | Sequence[Block],
    target: AttentionParams | Sequence[Block],
    inputs: ArrayLike,
    attn_mask: ArrayLike | None = None,
    *,
    dtype: Any = None,
) -> np.ndarray:
    """Bound the error of a ticket on given sequences: ``max_i ||ticket(x)_i - target(x)_i||``.

    Other than `guaranteed_error`, which holds for every input up to a norm, this holds for
    `inputs` alone and is far smaller: logits move by ``y_i (QK_S - QK_T) y_j`` on the target's
    own rows y, attention weights by what that does to the target's own weights, ReLU units count
    where they may be active. Errors of earlier blocks enter by norms at the target's rows.

    Args:
      source, masks, target: as in `guaranteed_error`.
      inputs: sequences `[s, t, m]`, or one, `[t, m]`.
      attn_mask: booleans `[t, t]`, True = may attend, as in `attention.apply`; None for all.
      dtype: arithmetic in which ticket and target are applied; None for the dtype of `source`.

    Returns:
      The bound of each sequence, `[s]` (of one sequence: a scalar), NumPy float64. Call
      `guarantee_on` for that of each row and each block, and for what is vacuous.

    Raises:
      ValueError: shapes that do not fit, or a row of `attn_mask` that attends to nothing.
    """
    x = np.asarray(inputs)
    found = guarantee_on(source, masks, target, inputs, attn_mask, dtype=dtype).error
    return found[0] if x.ndim == 2 else found


def guarantee_on(source, masks, target, inputs, attn_mask=None, *, dtype: Any = None) -> OnInputs:
    """Return the bound of `guaranteed_error_on` for each row and block. Arguments as there."""
    alone = isinstance(target, AttentionParams)
    if alone:  # attention alone is a block without residual
        source, masks, target = ((Block(part, ()),) for part in (source, masks, target))
    unit = compared.unit_round_off(source[0].attention, dtype)
    pairs = compared.paired(source, masks, target)
    x = np.asarray(inputs, np.float64)
    x = x[None] if x.ndim == 2 else x
    m = target[0].attention.w_q.shape[1]
    if x.ndim != 3 or x.shape[-1] != m or not np.all(np.isfinite(x)):
        raise checks.fail("inputs", f"finite, of shape (any, any, {m})", f"shape {x.shape}")
    t = x.shape[1]
    allowed = np.ones((t, t), bool) if attn_mask is None else np.asarray(attn_mask, bool)
    if allowed.shape != (t, t) or not allowed.any(axis=1).all():
        allows = f"of shape ({t}, {t}), True at least once in every row"
        raise checks.fail("attn_mask", allows, f"shape {allowed.shape}")
    widest = max([t * m, *(len(layer.w) for pair, _ in pairs for layer in pair.layers)])
    steps = [(_merged(pair.attention, block.attention), pair.layers) for pair, block in pairs]
    parts = []
    for y in _slices(x, t * widest):
        error, rounding, behind = np.zeros(y.shape[:2]), np.zeros(len(y)), []
        norms = []
        for merged, layers in steps:
            attended, change, here = _attention(merged, y, error, allowed, unit)
            rounding = rounding + here
            if alone:
                y, error = attended, change
            else:
                reached = np.max(_norm(y) + error, axis=-1)
                adding = 2 * unit * reached * (1 + np.sum(merged.ticket.vo + merged.target.vo))
                y, error = y + attended, error + change + adding[:, None]
            if layers:
                y, error, here = _layers(layers, y, error, unit)
                rounding = rounding + here
            behind.append(error)
            norms.append(_norm(y))
        parts.append((np.stack(behind), np.stack(norms), rounding))
    blocks, sizes, roundings = zip(*parts, strict=True)
    return OnInputs(
        np.concatenate(blocks, axis=1), np.concatenate(sizes, axis=1), np.concatenate(roundings)
    )


class _Merged(NamedTuple):
    """The merged matrices of ticket and target, and their differences; heads first."""

    qk_target: np.ndarray
    qk_ticket: np.ndarray
    vo_target: np.ndarray
    vo_ticket: np.ndarray
    ticket: compared.Norms
    target: compared.Norms
    together: float  # norm of the ticket's value-output matrices one below the other
    round_off: Callable[[np.ndarray, int, float], np.ndarray]  # of largest norms `[s]`, t, unit


def _merged(ticket: AttentionParams, target: AttentionParams) -> _Merged:
    of_ticket, of_target = compared.norms(ticket), compared.norms(target)
    vo_ticket = compared.w_vo(ticket)

    def rounding(reached: np.ndarray, t: int, unit: float) -> np.ndarray:
        of_both = ((of_ticket, ticket), (of_target, target))
        return np.add(*(round_off(of, params, reached, t, unit) for of, params in of_both))

    return _Merged(
        compared.w_qk(target),
        compared.w_qk(ticket),
        compared.w_vo(target),
        vo_ticket,
        of_ticket,
        of_target,
        float(compared.spectral(vo_ticket.reshape(-1, vo_ticket.shape[-1]))),
        rounding,
    )


def _attention(
    of: _Merged, y: np.ndarray, error: np.ndarray, allowed: np.ndarray, unit: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the target's attention of its rows `[s, t, o]`, the ticket's distance, round-off.

    The ticket's rows lie within `error [s, t]` of the target's rows `y [s, t, m]`.
    """
    turned = np.swapaxes(y, 1, 2)
    attended: np.ndarray | float = 0.0
    met: np.ndarray | float = 0.0  # what the value-output differences make of the target's averages
    moved = np.zeros(y.shape[:2])
    carried = []
    for h, size in enumerate(of.ticket.qk):
        logits = np.where(allowed, y @ of.qk_target[h] @ turned, -np.inf)
        weights = np.exp(logits - np.max(logits, axis=-1, keepdims=True))
        weights /= np.sum(weights, axis=-1, keepdims=True)
        change = y @ (of.qk_ticket[h] - of.qk_target[h]) @ turned
        queries, keys = _norm(y @ of.qk_ticket[h]), _norm(y @ of.qk_ticket[h].T)
        radius = _outer(error, keys) + _outer(queries, error) + size * _outer(error, error)
        each, total = _weights_moved(logits, weights, change, radius, allowed)
        values = y @ of.vo_ticket[h]
        centred = _norm(values[:, None] - (weights @ values)[:, :, None])
        farthest = np.max(np.where(allowed, centred, 0), axis=-1)
        moved += np.minimum(np.sum(each * centred, axis=-1), total * farthest)
        attended = attended + weights @ (y @ of.vo_target[h])
        met = met + weights @ (y @ (of.vo_ticket[h] - of.vo_target[h]))
        largest = np.max(np.where(allowed, error[:, None], 0), axis=-1)
        drift = np.minimum(np.sum(each * error[:, None], axis=-1), total / 2 * largest)
        carried.append((weights @ error[..., None])[..., 0] + drift)
    apart = np.tensordot(of.ticket.vo, carried, axes=1)
    stacked = of.together * np.sqrt(np.sum(np.square(carried), axis=0))
    reached = np.max(_norm(y) + error, axis=-1)
    here = of.round_off(reached, y.shape[1], unit)
    bound = moved + _norm(np.asarray(met)) + np.minimum(apart, stacked) + here[:, None]
    return np.asarray(attended), bound, here


def _weights_moved(
    logits: np.ndarray,
    weights: np.ndarray,
    change: np.ndarray,
    radius: np.ndarray,
    allowed: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Bound how far softmax weights move with logits that change by `change` +- `radius`.

    Returns that of each weight `[s, t, t]`, and of their sum `[s, t]`, which may be the smaller:
    ``2 tanh(e / 2)`` where no two changes differ by more than 2 e.
    """
    several = allowed.sum(axis=-1) > 1
    high = np.where(allowed, logits + change + radius, -np.inf)
    low = np.where(allowed, logits + change - radius, -np.inf)
    top = np.max(high, axis=-1, keepdims=True)
    up, down = np.exp(high - top), np.exp(low - top)
    # A weight is largest where its own logit is high and all others are low.
    others_up = np.maximum(np.sum(up, axis=-1, keepdims=True) - up, 0)
    others_down = np.maximum(np.sum(down, axis=-1, keepdims=True) - down, 0)
    most = np.divide(up, up + others_down, out=np.ones_like(up), where=up + others_down > 0)
    least = np.divide(down, down + others_up, out=np.zeros_like(up), where=down + others_up > 0)
    each = np.where(several[:, None] & allowed, np.maximum(most - weights, weights - least), 0)
    widest = np.max(np.where(allowed, change + radius, -np.inf), axis=-1) - np.min(
        np.where(allowed, change - radius, np.inf), axis=-1
    )
    return np.maximum(each, 0), np.where(several, 2 * np.tanh(widest / 4), 0)


def _layers(
    layers: Sequence[compared.Layer], y: np.ndarray, error: np.ndarray, unit: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the target's ``F(y) + y``, the ticket's distance from it, and round-off."""
    x, before, total = y, error, np.zeros(len(y))
    for l, layer in enumerate(layers):
        met = np.maximum(x, 0) @ layer.d_plus.T
        if layer.d_minus is not None:
            met = met + np.minimum(x, 0) @ layer.d_minus.T
        here = layer.rounding(np.max(_norm(x) + error, axis=-1), unit)
        total = total + here
        slope = layer.norm + layer.both
        x = x @ layer.w.T + layer.b
        if l == len(layers) - 1:
            error = slope * error + _norm(met) + here[:, None]
            continue
        slopes = np.linalg.norm(layer.w, axis=1) + np.linalg.norm(layer.differences, axis=1)
        units = error[..., None] * slopes + np.abs(met) + here[:, None, None]
        # A unit that is off in both networks passes nothing on.
        passed = np.where(x > 0, units, np.maximum(x + units, 0))
        whole = slope * error + _norm(np.where(passed > 0, met, 0)) + here[:, None]
        error = np.minimum(whole, _norm(passed))
        x = np.maximum(x, 0)
    largest = np.max(_norm(x) + _norm(y) + error + before, axis=-1)
    final = 2 * unit * largest
    return x + y, error + before + final[:, None], total + final


def _norm(x: np.ndarray) -> np.ndarray:
    return np.linalg.norm(x, axis=-1)


def _outer(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[:, :, None] * b[:, None, :]


def _slices(x: np.ndarray, entries: int) -> Iterator[np.ndarray]:
    size = max(1, _ENTRIES // entries)
    return (x[i : i + size] for i in range(0, len(x), size))
