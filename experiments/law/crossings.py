"""The least width for an error: where a measured curve crosses a level, with an interval."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

RESAMPLES = 400


def crossing(widths: ArrayLike, errors: ArrayLike, level: float) -> float:
    """Return the least width beyond which the error stays below `level`.

    ``log error`` is interpolated linearly between measured widths. The result is NaN if the error
    is not above `level` at any width, or if it is above `level` at the largest width.
    """
    w, log = np.asarray(widths, float), np.log(np.maximum(np.asarray(errors, float), 1e-30))
    above = np.flatnonzero(log > np.log(level))
    if not above.size or above[-1] == len(w) - 1:
        return float("nan")
    i = above[-1]
    return float(w[i] + (w[i + 1] - w[i]) * (log[i] - np.log(level)) / (log[i] - log[i + 1]))


def with_interval(
    widths: Sequence[float], errors: np.ndarray, level: float, *, percentile: float | None = None
) -> dict[str, float]:
    """Return the width at which the mean error (or a percentile) crosses a level.

    `low` and `high` limit the bootstrap interval. Sources are resampled 400 times with replacement
    and a fixed seed, the same sources at every width; `low` and `high` are the 2.5th and 97.5th
    percentile of the crossings.

    Args:
      widths: the w measured widths in increasing order.
      errors: the measured errors, `[w, sources, sequences]`.
      level: the error level.
      percentile: the percentile over all sequences of all sources; None for the mean.
    """

    def curve(of: np.ndarray) -> np.ndarray:
        flat = of.reshape(len(of), -1)
        return flat.mean(axis=1) if percentile is None else np.percentile(flat, percentile, axis=1)

    rng = np.random.default_rng(0)
    sources = errors.shape[1]
    again = [
        crossing(widths, curve(errors[:, rng.integers(sources, size=sources)]), level)
        for _ in range(RESAMPLES)
    ]
    low, high = _interval(np.array(again))
    return {"width": crossing(widths, curve(errors), level), "low": low, "high": high}


def _interval(values: np.ndarray) -> tuple[float, float]:
    known = values[np.isfinite(values)]
    if known.size < 0.9 * values.size:
        return float("nan"), float("nan")
    low, high = np.percentile(known, [2.5, 97.5])
    return float(low), float(high)
