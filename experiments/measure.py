"""From trials to the rows of a summary."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Row = Mapping[str, Any]


def spread(
    rows: Sequence[Row], name: str, values: Sequence[Any], metric: str = "error"
) -> list[dict[str, Any]]:
    """Return a row per entry of an array metric: `metric` becomes that entry, `name` its value."""
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
    """Return a row per setting: its values, then mean, std, median and count over the seeds.

    Args:
      rows: one per trial.
      by: names of the values that make a setting.
      metric: what is averaged. Values that are not finite are counted, as `not_finite`, and left
        out of the mean.
      **more: ``name=(metric, function)``: a further column, a function of the list of that
        metric's values. Trials without the metric are left out, and so are columns without any.
    """
    settings: dict[tuple, list[Row]] = {}
    for row in rows:
        settings.setdefault(tuple(row[name] for name in by), []).append(row)
    summary = []
    for setting, here in settings.items():
        one = dict(zip(by, setting, strict=True)) | _moments([row[metric] for row in here])
        for name, (of, function) in more.items():
            values = [row[of] for row in here if of in row]
            if values:
                one[name] = function(values)
        summary.append(one)
    return summary


def mean(values: Sequence[float]) -> float:
    """Return the mean of a column."""
    return float(np.mean(values))


def first(values: Sequence[Any]) -> Any:
    """Return the value of the first trial that has one."""
    return values[0]


def _moments(column: Sequence[float]) -> dict[str, Any]:
    values = np.array(column, float)
    finite = values[np.isfinite(values)]
    told: dict[str, Any] = {
        "mean": float(np.mean(finite)) if finite.size else float("nan"),
        "std": float(np.std(finite, ddof=1)) if finite.size > 1 else 0.0,
        "median": float(np.median(finite)) if finite.size else float("nan"),
        "count": values.size,
    }
    if finite.size < values.size:
        told["not_finite"] = int(values.size - finite.size)
    return told
