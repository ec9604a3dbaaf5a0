"""Fit curves to measured means by least squares."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, stats


def exponential(n: ArrayLike, mean: ArrayLike, *, floor: float = 0.0) -> dict[str, float]:
    """Fit ``gamma exp(-delta n)`` to means by least squares, as in the paper.

    `gamma`, `delta` and their standard errors come from unweighted least squares on the means, so
    the large means at small n dominate. The standard errors assume that all deviations from the
    curve have equal variance; `free` is the degrees of freedom. `log_gamma`, `log_delta` and
    `log_delta_se` come from a straight line fitted to the logarithms of the means above `floor`;
    below `floor`, rounding limits the error.
    """
    n_, mean_ = np.asarray(n, float), np.asarray(mean, float)
    above = mean_ > floor
    line = log_line(n_[above], mean_[above]) if above.sum() > 2 else log_line(n_, mean_)
    (gamma, delta), covariance = optimize.curve_fit(
        lambda x, g, d: g * np.exp(-d * x),
        n_,
        mean_,
        p0=(mean_.max(), min(max(line["delta"], 1e-3), 0.5)),
        maxfev=20_000,
    )
    gamma_se, delta_se = np.sqrt(np.diag(covariance))
    return {
        "gamma": float(gamma),
        "delta": float(delta),
        "gamma_se": float(gamma_se),
        "delta_se": float(delta_se),
        "free": len(n_) - 2,
        **{f"log_{name}": value for name, value in line.items()},
    }


def log_line(n: ArrayLike, mean: ArrayLike) -> dict[str, float]:
    """Fit ``log mean = log gamma - delta n`` to the positive means by least squares."""
    n_, mean_ = np.asarray(n, float), np.asarray(mean, float)
    positive = mean_ > 0
    line = stats.linregress(n_[positive], np.log(mean_[positive]))
    return {
        "gamma": float(np.exp(line.intercept)),
        "delta": float(-line.slope),
        "delta_se": float(line.stderr),
    }


def log_gamma_at(n: ArrayLike, mean: ArrayLike, delta: float) -> dict[str, float]:
    """Fit gamma in ``log mean = log gamma - delta n`` for a given delta.

    `residual` is the root mean square of the residuals of ``log mean``.
    """
    shifted = np.log(np.asarray(mean, float)) + delta * np.asarray(n, float)
    return {
        "gamma": float(np.exp(shifted.mean())),
        "residual": float(np.sqrt(np.mean((shifted - shifted.mean()) ** 2))),
    }


def slope(x: ArrayLike, y: ArrayLike, *, confidence: float = 0.95) -> dict[str, float]:
    """Fit ``y = a + b x`` by least squares; `low` and `high` are the ends of b's interval."""
    x_, y_ = np.asarray(x, float), np.asarray(y, float)
    line = stats.linregress(x_, y_)
    half = float(stats.t.ppf((1 + confidence) / 2, len(x_) - 2) * line.stderr)
    b = float(line.slope)
    return {"slope": b, "slope_se": float(line.stderr), "low": b - half, "high": b + half}


def within(
    groups: Sequence[object], x: Sequence[ArrayLike], y: ArrayLike
) -> list[dict[str, float]]:
    """Fit ``y = a_g + sum_i b_i x_i`` with an intercept a_g per group g; return each b_i.

    The deviations of y and x_i from their means in each group are fitted by least squares. The list
    is empty if the number of points is at most the number of fitted parameters, or if the x_i are
    linearly dependent within groups.
    """
    names, index = np.unique([repr(group) for group in groups], return_inverse=True)
    count = np.bincount(index)

    def centred(values: ArrayLike) -> np.ndarray:
        values = np.asarray(values, float)
        return values - (np.bincount(index, values) / count)[index]

    design, goal = np.stack([centred(column) for column in x], axis=1), centred(y)
    free = len(goal) - len(names) - len(x)
    if free < 1 or np.linalg.matrix_rank(design) < len(x):
        return []
    b, *_ = np.linalg.lstsq(design, goal, rcond=None)
    variance = np.sum((goal - design @ b) ** 2) / free
    errors = np.sqrt(variance * np.diag(np.linalg.inv(design.T @ design)))
    return [
        {"slope": float(slope), "slope_se": float(error)}
        for slope, error in zip(b, errors, strict=True)
    ]
