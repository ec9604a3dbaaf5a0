"""Fit several forms of the law to the measured widths by least squares.

Widths of the same shape (d, H) share targets and sources, so standard errors are clustered by
shape.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats

Row = dict[str, Any]

# The pairs (a, b): n / d is regressed on the logarithm of H^a d^b / epsilon.
FORMS = {
    "H d^(3/2) / eps": (1.0, 1.5),
    "d^(3/2) / eps": (0.0, 1.5),
    "1 / eps": (0.0, 0.0),
    "H d^3 / eps": (1.0, 3.0),
    "H^(1/2) d / eps": (0.5, 1.0),
    "H^(1/2) d^(3/2) / eps": (0.5, 1.5),
}

SMALL_ERRORS = 0.01
"""The largest error used for the law in bits.

Larger errors need so few units per input coordinate that the width is too coarse.
"""


def logarithm(rows: Sequence[Row], form: str) -> Float[np.ndarray, " n"]:
    """Return ``log(H^a d^b / eps)`` for each row; `form` determines a and b."""
    a, b = FORMS[form]
    h, d, eps = _columns(rows)
    return a * np.log(h) + b * np.log(d) - np.log(eps)


def line(rows: Sequence[Row], form: str) -> dict[str, Any]:
    """Fit ``n / d = intercept + slope log(form)``, where `form` is one of `FORMS`.

    `rms` is the root mean square of the residuals. `residual_by_d` and `residual_by_heads` are the
    mean residuals for each d and for each H.
    """
    x, y = logarithm(rows, form), _units(rows)
    design = np.stack([np.ones_like(x), x], axis=1)
    fit = clustered(design, y, _shapes(rows))
    return {
        "form": form,
        "intercept": float(fit.beta[0]),
        "intercept_se": fit.error(np.array([1.0, 0.0]))[0],
        "slope": float(fit.beta[1]),
        "slope_se": fit.error(np.array([0.0, 1.0]))[0],
        "rms": float(np.sqrt(np.mean(fit.residual**2))),
        "r2": fit.r2,
        "residual_by_d": _means(rows, "d", fit.residual),
        "residual_by_heads": _means(rows, "heads", fit.residual),
    }


def free(rows: Sequence[Row], *, small: bool = False) -> dict[str, Any]:
    """Fit ``n / d = intercept + slope log(1 / eps) + d log(d) + heads log(H) (+ small / d^2)``.

    `power_of_d` is the ratio ``d / slope`` of fitted coefficients, and `power_of_heads` is ``heads
    / slope``; the paper's values are 3/2 and 1. The term `small`, which is fitted on request,
    describes the deviation at small d. A power of d (or of H) is fitted only if the rows have
    several values of d (or of H). Entries that end in `_se` are standard errors of coefficients
    and, by the delta method, of powers; entries that end in `_free` are the degrees of freedom of
    the powers' standard errors. `low` and `high` are the smallest and the largest ratio of a
    measured width to the fitted width: `high` times the fitted width suffices at every measured
    point; a width below `low` times the fitted width suffices at no measured point.
    """
    h, d, eps = _columns(rows)
    y = _units(rows)
    columns = {
        "intercept": np.ones_like(h),
        "slope": -np.log(eps),
        "d": np.log(d),
        "heads": np.log(h),
    }
    if small:
        columns["small"] = d**-2.0
    for name, values in (("d", d), ("heads", h)):
        if np.ptp(values) == 0:  # a constant column would repeat the intercept
            del columns[name]
    design = np.stack(list(columns.values()), axis=1)
    fit = clustered(design, y, _shapes(rows))
    out: dict[str, Any] = {}
    names = list(columns)
    for name, value, alone in zip(names, fit.beta, np.eye(len(names)), strict=True):
        out |= {name: float(value), f"{name}_se": fit.error(alone)[0]}
    for name in ("d", "heads"):
        if name in columns:
            ratio = out[name] / out["slope"]
            gradient = np.zeros(len(names))
            gradient[names.index(name)] = 1 / out["slope"]
            gradient[names.index("slope")] = -ratio / out["slope"]
            out[f"power_of_{name}"] = ratio
            out[f"power_of_{name}_se"], out[f"power_of_{name}_free"] = fit.error(gradient)
    share = y / (y - fit.residual)
    return out | {
        "shapes": len(set(_shapes(rows))),
        "rms": float(np.sqrt(np.mean(fit.residual**2))),
        "r2": fit.r2,
        "low": float(share.min()),
        "high": float(share.max()),
    }


def in_bits(rows: Sequence[Row]) -> dict[str, Any]:
    """Fit ``n / d = slope log2(1 / eps) + log2(n / d) / 2 + c(d, H)`` to errors up to 1 %.

    The second term is needed because the subset sums of n / d random samples take 2^(n / d) values
    in a range that grows with the square root of n / d. A slope of 1 means one bit of precision for
    each hidden unit per input coordinate. All shapes share one slope, whose interval (`low`,
    `high`) is clustered by shape. `shapes` contains, for each shape, the slope of a separate fit,
    and c(d, H) if the slope is set to 1. `rms` is the root mean square of the residuals if the
    slope is set to 1.
    """
    rows = [row for row in rows if row["eps"] <= SMALL_ERRORS * (1 + 1e-9)]
    counts = {shape: _shapes(rows).count(shape) for shape in dict.fromkeys(_shapes(rows))}
    rows = [row for row in rows if counts[row["d"], row["heads"]] >= 2]
    if len(counts) < 3 or not rows:
        return {}
    _, _, eps = _columns(rows)
    units = _units(rows)
    x, y = -np.log2(eps), units - np.log2(units) / 2
    shapes, group = np.unique(np.array(_shapes(rows)), axis=0, return_inverse=True)
    group = group.reshape(-1)
    dummies = (group[:, None] == np.arange(len(shapes))[None]).astype(float)
    fit = clustered(np.concatenate([x[:, None], dummies], axis=1), y, _shapes(rows))
    error, freedom = fit.error(np.eye(1, 1 + len(shapes))[0])
    half = float(stats.t.ppf(0.975, freedom)) * error
    common = float(fit.beta[0])
    of_shape = []
    residuals = []
    for index, (d, heads) in enumerate(shapes.tolist()):
        inside = group == index
        c = float(np.mean(y[inside] - x[inside]))
        residuals.append(y[inside] - x[inside] - c)
        slope = float(np.polyfit(x[inside], y[inside], 1)[0])
        plain = float(np.polyfit(-np.log(eps[inside]), units[inside], 1)[0])
        of_shape.append({"d": d, "heads": heads, "slope": slope, "plain_slope": plain, "c": c})
    slopes = [shape["slope"] for shape in of_shape]
    return {
        "slope": common,
        "low": common - half,
        "high": common + half,
        "median_slope": float(np.median(slopes)),
        "least_slope": min(slopes),
        "largest_slope": max(slopes),
        "rms": float(np.sqrt(np.mean(np.concatenate(residuals) ** 2))),
        "count": len(rows),
        "shapes": of_shape,
    }


def _columns(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return three arrays: the heads, the d and the epsilon of each row."""
    h, d, eps = (np.array([row[name] for row in rows], float) for name in ("heads", "d", "eps"))
    return h, d, eps


def _units(rows: Sequence[Row]) -> np.ndarray:
    return np.array([row["width"] / row["d"] for row in rows])


def _shapes(rows: Sequence[Row]) -> list[tuple[int, int]]:
    return [(row["d"], row["heads"]) for row in rows]


@dataclasses.dataclass(frozen=True)
class Clustered:
    """A least-squares fit whose deviations may be dependent within groups.

    Standard errors are computed as in Bell and McCaffrey (2002).

    Attributes:
      beta: the coefficients, `[p]`.
      residual: the measured minus the fitted values, `[n]`.
      r2: the share of the variance that the fit explains.
      scores: an array `[groups, p]`; the standard error of ``c . beta`` is the 2-norm of ``scores @
        c``.
      spreads: an array `[groups, n, p]`; row g of ``spreads @ c`` contains the weights with which
        the n deviations enter the score of group g.
    """

    beta: np.ndarray
    residual: np.ndarray
    r2: float
    scores: np.ndarray
    spreads: np.ndarray

    def error(self, contrast: Float[np.ndarray, " p"]) -> tuple[float, float]:
        """Return the standard error of ``contrast . beta``, and its degrees of freedom.

        The degrees of freedom are the number at which a scaled chi-squared variable has the mean
        and the variance of the squared standard error, if all deviations are independent with equal
        variance.
        """
        weights = self.spreads @ contrast  # [groups, n]
        gram = weights @ weights.T
        freedom = np.trace(gram) ** 2 / np.sum(gram**2)
        return float(np.linalg.norm(self.scores @ contrast)), float(freedom)


def clustered(
    design: Float[np.ndarray, "n p"], y: Float[np.ndarray, " n"], groups: Sequence[Any]
) -> Clustered:
    """Fit ``y = design @ beta`` by least squares, with standard errors clustered by group."""
    bread = np.linalg.pinv(design.T @ design)
    beta = bread @ (design.T @ y)
    residual = y - design @ beta
    rest = np.eye(len(y)) - design @ bread @ design.T
    scores, spreads = [], []
    for name in dict.fromkeys(groups):
        inside = np.array([group == name for group in groups])
        # If there are few groups, the residuals are too small. Multiplied by this inverse root,
        # they have the right variance if deviations are independent. The pseudo-inverse is needed
        # because the matrix is singular for a group with a separate intercept.
        values, vectors = np.linalg.eigh(rest[np.ix_(inside, inside)])
        roots = np.where(values > 1e-9, 1 / np.sqrt(np.maximum(values, 1e-9)), 0.0)
        adjusted = (vectors * roots) @ vectors.T @ design[inside] @ bread
        scores.append(residual[inside] @ adjusted)
        spreads.append(rest[:, inside] @ adjusted)
    r2 = float(1 - residual @ residual / max(((y - y.mean()) ** 2).sum(), 1e-30))
    return Clustered(beta, residual, r2, np.array(scores), np.array(spreads))


def _means(rows: Sequence[Row], name: str, residual: np.ndarray) -> dict[str, float]:
    values = np.array([row[name] for row in rows])
    return {str(value): float(residual[values == value].mean()) for value in np.unique(values)}
