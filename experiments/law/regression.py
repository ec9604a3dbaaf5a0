"""Forms of the law, by least squares on the measured widths.

Widths of one shape (d, H) share targets and sources, so standard errors are clustered by shape.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats

Row = dict[str, Any]

# n / d is regressed on the logarithm of H^a d^b / epsilon.
FORMS = {
    "H d^(3/2) / eps": (1.0, 1.5),
    "d^(3/2) / eps": (0.0, 1.5),
    "1 / eps": (0.0, 0.0),
    "H d^3 / eps": (1.0, 3.0),
    "H^(1/2) d / eps": (0.5, 1.0),
    "H^(1/2) d^(3/2) / eps": (0.5, 1.5),
}

SMALL_ERRORS = 0.01
"""The largest error of the law in bits: above it a few units per input are met too coarsely."""


def logarithm(rows: Sequence[Row], form: str) -> Float[np.ndarray, " n"]:
    """Return ``log(H^a d^b / eps)`` of each row."""
    a, b = FORMS[form]
    h, d, eps = _columns(rows)
    return a * np.log(h) + b * np.log(d) - np.log(eps)


def line(rows: Sequence[Row], form: str) -> dict[str, Any]:
    """Fit ``n / d = intercept + slope log(form)``; spread, R^2, and residuals by d and by H."""
    x, y = logarithm(rows, form), _units(rows)
    design = np.stack([np.ones_like(x), x], axis=1)
    beta, se, residual, r2 = _least_squares(design, y, _shapes(rows))
    return {
        "form": form,
        "intercept": beta[0],
        "intercept_se": se[0],
        "slope": beta[1],
        "slope_se": se[1],
        "rms": float(np.sqrt(np.mean(residual**2))),
        "r2": r2,
        "residual_by_d": _means(rows, "d", residual),
        "residual_by_heads": _means(rows, "heads", residual),
    }


def free(rows: Sequence[Row], *, small: bool = False) -> dict[str, Any]:
    """Fit ``n / d = intercept + slope log(1 / eps) + d log(d) + heads log(H) (+ small / d^2)``.

    In the paper's form ``d / slope = 3/2`` and ``heads / slope = 1``. The term `small` covers the
    few units of a small d. A power of d or H is fitted only if the rows have several values of it;
    its `_se` is the delta method's, with `shapes` - 1 degrees of freedom. `low` and `high` are the
    least and the largest ratio of a measured width to the fitted one: with a margin of `high` every
    point is met, with less than `low` none is.
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
        if np.ptp(values) == 0:  # the intercept contains it
            del columns[name]
    design = np.stack(list(columns.values()), axis=1)
    beta, covariance, residual, r2 = _clustered(design, y, _shapes(rows))
    out: dict[str, Any] = {}
    names = list(columns)
    for name, value, error in zip(names, beta, np.sqrt(np.diag(covariance)), strict=True):
        out |= {name: float(value), f"{name}_se": float(error)}
    for name in ("d", "heads"):
        if name in columns:
            ratio = out[name] / out["slope"]
            gradient = np.zeros(len(names))
            gradient[names.index(name)] = 1 / out["slope"]
            gradient[names.index("slope")] = -ratio / out["slope"]
            out[f"power_of_{name}"] = ratio
            out[f"power_of_{name}_se"] = float(np.sqrt(gradient @ covariance @ gradient))
    share = y / (y - residual)
    return out | {
        "shapes": len(set(_shapes(rows))),
        "rms": float(np.sqrt(np.mean(residual**2))),
        "r2": r2,
        "low": float(share.min()),
        "high": float(share.max()),
    }


def in_bits(rows: Sequence[Row]) -> dict[str, Any]:
    """Fit ``n / d = slope log2(1 / eps) + log2(n / d) / 2 + c(d, H)`` to errors up to 1 %.

    The sums of n / d random samples take 2^(n / d) values in a range that grows with the root of
    n / d, hence the second term. A slope of 1 means one bit of precision per unit. The slope is
    common to all shapes, with an interval clustered by shape. `shapes` contains each shape's
    separate slope, and its c(d, H) at a slope of exactly 1. `rms` is the residual at slope 1.
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
    beta, se, _, _ = _least_squares(np.concatenate([x[:, None], dummies], axis=1), y, _shapes(rows))
    half = float(stats.t.ppf(0.975, len(shapes) - 1)) * se[0]
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
        "slope": beta[0],
        "low": beta[0] - half,
        "high": beta[0] + half,
        "median_slope": float(np.median(slopes)),
        "least_slope": min(slopes),
        "largest_slope": max(slopes),
        "rms": float(np.sqrt(np.mean(np.concatenate(residuals) ** 2))),
        "count": len(rows),
        "shapes": of_shape,
    }


def _columns(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return heads, d and epsilon of each row."""
    h, d, eps = (np.array([row[name] for row in rows], float) for name in ("heads", "d", "eps"))
    return h, d, eps


def _units(rows: Sequence[Row]) -> np.ndarray:
    return np.array([row["width"] / row["d"] for row in rows])


def _shapes(rows: Sequence[Row]) -> list[tuple[int, int]]:
    return [(row["d"], row["heads"]) for row in rows]


def _least_squares(design: np.ndarray, y: np.ndarray, groups: Sequence[tuple[int, int]]):
    """Return coefficients, their standard errors clustered by group, residuals and R^2."""
    beta, covariance, residual, r2 = _clustered(design, y, groups)
    return [float(b) for b in beta], np.sqrt(np.diag(covariance)).tolist(), residual, r2


def _clustered(design: np.ndarray, y: np.ndarray, groups: Sequence[tuple[int, int]]):
    """Return coefficients, their covariance clustered by group, residuals and R^2."""
    beta, *_ = np.linalg.lstsq(design, y, rcond=None)
    residual = y - design @ beta
    bread = np.linalg.pinv(design.T @ design)
    names = list(dict.fromkeys(groups))
    covariance = np.zeros_like(bread)
    for name in names:
        rows = design[[group == name for group in groups]]
        # The residuals that the other groups' fit would leave (jackknife, Bell and McCaffrey 2002):
        # plain residuals of few groups are too small. A group that has an intercept of its own has
        # no freedom in that direction, hence the pseudo-inverse.
        inside = residual[[group == name for group in groups]]
        outside = np.linalg.pinv(np.eye(len(rows)) - rows @ bread @ rows.T, hermitian=True) @ inside
        score = bread @ (rows.T @ outside)
        covariance += np.outer(score, score)
    covariance *= (len(names) - 1) / len(names)
    r2 = float(1 - residual @ residual / max(((y - y.mean()) ** 2).sum(), 1e-30))
    return beta, covariance, residual, r2


def _means(rows: Sequence[Row], name: str, residual: np.ndarray) -> dict[str, float]:
    values = np.array([row[name] for row in rows])
    return {str(value): float(residual[values == value].mean()) for value in np.unique(values)}
