"""Find the width at which a measured error curve falls below a level, with an interval."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy import stats

_LEAST = 1e-30  # replaces an error of 0 before the logarithm


def crossing(widths: ArrayLike, errors: ArrayLike, level: float) -> float:
    """Return the least width beyond which the error stays below `level`.

    ``log error`` is interpolated linearly between measured widths. The result is NaN if the error
    is not above `level` at any width, or if it is above `level` at the largest width.
    """
    w, log = np.asarray(widths, float), np.log(np.maximum(np.asarray(errors, float), _LEAST))
    above = np.flatnonzero(log > np.log(level))
    if not above.size or above[-1] == len(w) - 1:
        return float("nan")
    i = above[-1]
    return float(w[i] + (w[i + 1] - w[i]) * (log[i] - np.log(level)) / (log[i] - log[i + 1]))


def with_interval(
    widths: Sequence[float], errors: Float[np.ndarray, "w sources"], level: float
) -> dict[str, float]:
    """Return the width at which the mean error over sources falls below a level, with an interval.

    The 95 % interval contains each width at which the interpolated ``log error`` differs from ``log
    level`` by at most Student's t times the standard error of ``log error`` (Fieller 1954).
    Different widths may have the same sources or different sources, since the covariance between
    widths is estimated too.

    Args:
      widths: the w measured widths in increasing order.
      errors: the error of each source at each width.
      level: the error level.

    Returns:
      `width` and the limits `low` and `high` of the interval. A limit is NaN if the interval
      reaches the end of the curve.
    """
    mean = np.maximum(errors.mean(axis=1), _LEAST)
    log, sources = np.log(mean / level), errors.shape[1]
    # The covariance of the logarithms of the means, by the delta method.
    covariance = np.atleast_2d(np.cov(errors / mean[:, None])) / sources
    square = float(stats.t.ppf(0.975, sources - 1)) ** 2
    inside: list[float] = []
    for i in range(len(mean) - 1):
        # At the fraction f of the way to the next width, the logarithm is log[i] + f rise, and its
        # variance is start + 2 f (both - start) + f^2 (start - 2 both + end). The width is in the
        # interval if the quadratic polynomial in f below is not positive.
        rise = log[i + 1] - log[i]
        start, both, end = covariance[i, i], covariance[i, i + 1], covariance[i + 1, i + 1]
        polynomial = (
            rise**2 - square * (start - 2 * both + end),
            2 * log[i] * rise - 2 * square * (both - start),
            log[i] ** 2 - square * start,
        )
        roots = np.roots(polynomial)
        shares = [float(f.real) for f in roots if abs(f.imag) < 1e-12 and 0 < f.real < 1]
        shares += [f for f in (0.0, 1.0) if np.polyval(polynomial, f) <= 0]
        inside += [widths[i] + f * (widths[i + 1] - widths[i]) for f in shares]
    width = crossing(widths, mean, level)
    low, high = (min(inside), max(inside)) if inside and np.isfinite(width) else (np.nan, np.nan)
    return {
        "width": width,
        "low": float(low if low > widths[0] else np.nan),
        "high": float(high if high < widths[-1] else np.nan),
    }
