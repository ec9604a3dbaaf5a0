"""Round weights to few bits each; tickets are compared with models of rounded weights."""

from typing import Any

import numpy as np


def rounded(target: Any, bits: int, group: int = 128) -> Any:
    """Round the entries of an array to equally spaced values; each group has a step size.

    For each group, the step size of least squared error is chosen among 27; entries beyond the
    largest representable value are clipped.

    Args:
      target: an array of NumPy or JAX.
      bits: bits per entry; each group needs 16 more bits for its step size.
      group: number of consecutive entries of the last axis that share a step size; the last group
        may be smaller.
    """
    xp = target.__array_namespace__()
    count = target.shape[-1]
    padding = -count % group
    padded = xp.pad(target, [(0, 0)] * (target.ndim - 1) + [(0, padding)])
    groups = padded.reshape(*target.shape[:-1], -1, group)
    weight = (np.arange(count + padding) < count).reshape(-1, group)
    weight = weight[(None,) * (target.ndim - 1)]  # 1 for entries, 0 for padding
    largest = xp.abs(groups).max(axis=-1, keepdims=True) + 1e-30
    best, least = groups, xp.full_like(largest, np.inf)
    edge = (2**bits - 1) / 2
    for clip in np.linspace(0.3, 1, 27):
        step = (float(clip) * largest / edge).astype(xp.float16).astype(groups.dtype) + 1e-30
        values = xp.clip(xp.round(groups / step - 0.5) + 0.5, -edge, edge) * step
        error = xp.sum(weight * (values - groups) ** 2, axis=-1, keepdims=True)
        best, least = xp.where(error < least, values, best), xp.minimum(error, least)
    return best.reshape(padded.shape)[..., :count]
