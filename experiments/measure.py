"""Compute statistics of trials; these statistics are the rows of a summary."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

Row = Mapping[str, Any]

BAND = (0.1, 0.5, 0.9)
"""The quantiles over trials: the lower edge of a figure's band, the median, the upper edge."""


def spread(
    rows: Sequence[Row], name: str, values: Sequence[Any], metric: str = "error"
) -> list[dict[str, Any]]:
    """Split rows whose metric is an array: return a row for each entry of the array.

    In each returned row, `metric` is one entry of the array, and `name` is the corresponding entry
    of `values`.
    """
    return [
        {**row, name: value, metric: entry}
        for row in rows
        for value, entry in zip(values, row[metric], strict=True)
    ]


def summarize(
    rows: Sequence[Row],
    by: Sequence[str],
    metric: str = "error",
    **more: tuple[str, Callable[[list[Any]], Any]],
) -> list[dict[str, Any]]:
    """Return a row per setting: the setting's values, and moments of `metric` over its trials.

    The moments are mean, std, median, low and high (the 10th and 90th percentile) and count.

    Args:
      rows: one row per trial.
      by: the names of columns; trials with equal values in these columns have the same setting.
      metric: the name of the averaged column. Values that are not finite are left out of the
        moments; the number of such values is stored as `not_finite`.
      **more: ``name=(metric, function)`` adds the column `name`, which is `function` of the list of
        the metric's values. Trials without the metric are left out; a column without any value is
        left out too.
    """
    settings: dict[tuple, list[Row]] = {}
    for row in rows:
        settings.setdefault(tuple(row[name] for name in by), []).append(row)
    summary = []
    for setting, trials in settings.items():
        entry = dict(zip(by, setting, strict=True)) | moments([row[metric] for row in trials])
        for name, (of, function) in more.items():
            values = [row[of] for row in trials if of in row]
            if values:
                entry[name] = function(values)
        summary.append(entry)
    return summary


def paired(
    rows: Sequence[Row],
    name: str,
    value: Any,
    reference: Any,
    *,
    metric: str = "loss",
    confidence: float = 0.95,
) -> dict[str, Any]:
    """Compare two settings by their paired differences, over the seeds that both settings have.

    ``d_s = metric(name = value, seed s) - metric(name = reference, seed s)``. The interval of the
    mean difference is Student's, ``mean +- t sd / sqrt(count)``. Runs of the same seed share
    weights, batches and first scores, so the effect of the seed cancels. `below` is the number of
    seeds with a negative difference; `p_value` is the p-value of the paired t-test.
    """
    first, second = (
        {row["seed"]: row[metric] for row in rows if row[name] == setting}
        for setting in (value, reference)
    )
    seeds = sorted(first.keys() & second.keys())
    difference = np.array([first[seed] - second[seed] for seed in seeds], float)
    out = {
        name: value,
        "reference": reference,
        "difference": float(difference.mean()),
        "count": len(seeds),
        "below": int((difference < 0).sum()),
    }
    if len(seeds) > 1:
        test = stats.ttest_1samp(difference, 0.0)
        interval = test.confidence_interval(confidence)
        out["std"] = float(difference.std(ddof=1))
        out |= {"low": float(interval.low), "high": float(interval.high)}
        out["p_value"] = float(test.pvalue)
    return out


def crossed_mean(values: np.ndarray) -> dict[str, Any]:
    """Return the standard error of a mean over two crossed factors, and its degrees of freedom.

    For ``x_ts = mean + a_t + b_s + e_ts`` the variance of the mean is ``V(a) / T + V(b) / S + V(e)
    / (T S)``. The sum of the estimated variances of the row means and of the column means contains
    V(e) / (T S) twice, so this term is subtracted once. The degrees of freedom are ``min(T, S) -
    1``. The result is empty if T or S is 1.

    Args:
      values: the measurements x, `[t, s]`.
    """
    t, s = values.shape
    if min(t, s) < 2:
        return {}
    rows, columns = values.mean(axis=1), values.mean(axis=0)
    rest = values - rows[:, None] - columns[None] + values.mean()
    noise = np.sum(rest**2) / ((t - 1) * (s - 1))
    variance = rows.var(ddof=1) / t + columns.var(ddof=1) / s - noise / (t * s)
    least = max(rows.var(ddof=1) / t, columns.var(ddof=1) / s)
    return {"mean_se": float(np.sqrt(max(variance, least))), "mean_free": min(t, s) - 1}


def mean(values: Sequence[float]) -> float:
    """Return the mean of the values of a column."""
    return float(np.mean(values))


def first(values: Sequence[Any]) -> Any:
    """Return the first value, which belongs to the first trial that has the metric."""
    return values[0]


def moments(column: Sequence[float]) -> dict[str, Any]:
    """Return mean, std, median, low, high and count of a column; see `summarize`."""
    values = np.array(column, float)
    finite = values[np.isfinite(values)]
    low, median, high = np.quantile(finite, BAND) if finite.size else (float("nan"),) * 3
    entry: dict[str, Any] = {
        "mean": float(np.mean(finite)) if finite.size else float("nan"),
        "std": float(np.std(finite, ddof=1)) if finite.size > 1 else 0.0,
        "median": float(median),
        "low": float(low),
        "high": float(high),
        "count": values.size,
    }
    if finite.size < values.size:
        entry["not_finite"] = int(values.size - finite.size)
    return entry
