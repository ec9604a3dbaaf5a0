"""Forms of the law, by least squares on the measured widths."""

from collections.abc import Sequence
from typing import Any

import numpy as np

Row = dict[str, Any]

# What ``n / d`` is regressed on: the logarithm of ``H^a d^b / epsilon``.
FORMS = {
    "H d^(3/2) / eps": (1.0, 1.5),
    "d^(3/2) / eps": (0.0, 1.5),
    "1 / eps": (0.0, 0.0),
    "H d^3 / eps": (1.0, 3.0),
    "H^(1/2) d / eps": (0.5, 1.0),
    "H^(1/2) d^(3/2) / eps": (0.5, 1.5),
}


def logarithm(rows: Sequence[Row], form: str) -> np.ndarray:
    """Return ``log(H^a d^b / eps)`` of each row."""
    a, b = FORMS[form]
    h, d, eps = (np.array([row[name] for row in rows], float) for name in ("heads", "d", "eps"))
    return a * np.log(h) + b * np.log(d) - np.log(eps)


def line(rows: Sequence[Row], form: str) -> dict[str, Any]:
    """Fit ``n / d = intercept + slope log(form)``; spread, R^2, and residuals by d and by H."""
    x, y = logarithm(rows, form), np.array([row["width"] / row["d"] for row in rows])
    design = np.stack([np.ones_like(x), x], axis=1)
    beta, se, residual, r2 = _least_squares(design, y)
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

    The paper's form has ``d / slope = 3/2`` and ``heads / slope = 1``; `small` is the price of the
    few units of a small d. `low` and `high` are the least and largest share of the fitted width
    that is needed: with a margin of at least `high` every point is met, with one below twice
    `low` none by half of it.
    """
    h, d, eps = (np.array([row[name] for row in rows], float) for name in ("heads", "d", "eps"))
    y = np.array([row["width"] / row["d"] for row in rows])
    columns = {
        "intercept": np.ones_like(h),
        "slope": -np.log(eps),
        "d": np.log(d),
        "heads": np.log(h),
    }
    if small:
        columns["small"] = d**-2.0
    beta, se, residual, r2 = _least_squares(np.stack(list(columns.values()), axis=1), y)
    out: dict[str, Any] = {}
    for name, value, error in zip(columns, beta, se, strict=True):
        out |= {name: value, f"{name}_se": error}
    share = y / (y - residual)
    return out | {
        "power_of_d": out["d"] / out["slope"],
        "power_of_heads": out["heads"] / out["slope"],
        "rms": float(np.sqrt(np.mean(residual**2))),
        "r2": r2,
        "low": float(share.min()),
        "high": float(share.max()),
    }


def _least_squares(design: np.ndarray, y: np.ndarray):
    beta, *_ = np.linalg.lstsq(design, y, rcond=None)
    residual = y - design @ beta
    freedom = max(len(y) - design.shape[1], 1)
    covariance = np.linalg.pinv(design.T @ design) * (residual @ residual / freedom)
    r2 = float(1 - residual @ residual / max(((y - y.mean()) ** 2).sum(), 1e-30))
    return [float(b) for b in beta], [float(s) for s in np.sqrt(np.diag(covariance))], residual, r2


def _means(rows: Sequence[Row], name: str, residual: np.ndarray) -> dict[str, float]:
    values = np.array([row[name] for row in rows])
    return {str(value): float(residual[values == value].mean()) for value in np.unique(values)}
