"""Draw untrained targets from the theory's distribution, and fit the errors of their tickets."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Key

from experiments import curves, measure
from slth_jax import initializers
from slth_jax.types import Projections

WIDTH = 8  # d_K = d_V of a target, as in the trained target
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)


def key_of(seed: int) -> Key[Array, ""]:
    """Return the key with which targets are drawn; seed 0 gives the key 11, as in early runs."""
    return jax.random.key(11 + seed, impl="threefry2x32")


def draw(key: Key[Array, ""], count: int) -> Projections:
    """Draw `count` targets with one head, d_in = 2 and d_out = 1, stacked on the first axis."""

    def target(key: Key[Array, ""]) -> Projections:
        return initializers.theory_attention(
            key, num_heads=1, d_in=2, d_out=1, n_k=WIDTH, n_v=WIDTH
        )

    return jax.vmap(target)(jax.random.split(key, count))


def means(
    rows: Sequence[dict[str, Any]], by: str
) -> tuple[list[Any], Float[np.ndarray, "points targets"]]:
    """Return the values of the column `by`, and for each value the mean error of each target."""
    points = sorted({row[by] for row in rows})
    targets = sorted({row["target_index"] for row in rows})
    errors: dict[tuple[Any, int], list[float]] = {}
    for row in rows:
        errors.setdefault((row[by], row["target_index"]), []).append(row["error"])
    return points, np.array([[np.mean(errors[x, t]) for t in targets] for x in points])


def with_band(
    summary: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]], by: str
) -> list[dict[str, Any]]:
    """Add columns to each row of a summary: a band over targets, and the mean's standard error.

    `targets_low` and `targets_high` are the 10th and the 90th percentile of the targets' mean
    errors. `mean_se` is the standard error of the mean over all trials, clustered by target and by
    source; this standard error has `mean_free` degrees of freedom.
    """
    points, of_targets = means(rows, by)
    low, high = np.quantile(of_targets, (measure.BAND[0], measure.BAND[-1]), axis=1)
    columns: dict[Any, dict[str, Any]] = {}
    for x, a, b in zip(points, low, high, strict=True):
        trials = [row for row in rows if row[by] == x]
        seeds = sorted({row["seed"] for row in trials})
        targets = sorted({row["target_index"] for row in trials})
        errors = {(row["target_index"], row["seed"]): row["error"] for row in trials}
        crossed = np.array([[errors[t, s] for s in seeds] for t in targets], float)
        columns[x] = {"targets_low": float(a), "targets_high": float(b)}
        columns[x] |= measure.crossed_mean(crossed)
    return [{**row, **columns[row[by]]} for row in summary]


def fit(rows: Sequence[dict[str, Any]], *, floor: float = 0.0) -> dict[str, Any]:
    """Fit ``gamma exp(-delta n)`` to the means over all targets, and to the means of each target.

    The straight line through the logarithms of the means uses only means above `floor`.

    The returned dict contains the fit of the means over all targets (see `curves.exponential`);
    `targets`, the number of targets; and `single`, the quantiles of gamma and delta over the fits
    of single targets.
    """
    widths, of_targets = means(rows, "width")
    single = [curves.exponential(widths, column) for column in of_targets.T]
    quantiles = {
        name: {
            f"{100 * q:.0f} %": float(np.quantile([fit[name] for fit in single], q))
            for q in QUANTILES
        }
        for name in ("gamma", "delta")
    }
    together = curves.exponential(widths, of_targets.mean(axis=1), floor=floor)
    return {**together, "targets": len(single), "single": quantiles}
