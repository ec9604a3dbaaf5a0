"""Plot the figures of the language experiments: loss against scale, size, bytes and steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.plots import COLORS, PAPER, error_bars, figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOSS = "validation loss (nats per token)"
METHODS = {"dense": "trained", "ticket": "ticket", "scaled": "ticket, scaled query and key"}


def against_scale(rows: Sequence[dict[str, Any]], entropy: float) -> Figure:
    """Plot figure 8: the best validation loss (mean and standard deviation) against the scale."""
    drawing, axes = figure()
    for index, model in enumerate(dict.fromkeys(row["model"] for row in rows)):
        points = [row for row in rows if row["model"] == model]
        count = points[0]["count"]
        label = f"GPT-2 {model}, mean of {count} seeds"
        error_bars(axes, [row["scale"] for row in points], points, label, index)
    axes.axvline(64**0.25, color=PAPER, linestyle="--", linewidth=1.2)
    axes.annotate(
        "paper: n_K^(1/4) = 2.83",
        (64**0.25, 1),
        xycoords=("data", "axes fraction"),
        xytext=(4, -12),
        textcoords="offset points",
        color=PAPER,
        fontsize=9,
    )
    axes.set_xlabel("scale of query and key weights")
    axes.set_ylabel(LOSS)
    axes.set_title(f"Ticket loss against weight scale; unigram entropy {entropy:.2f}", fontsize=10)
    axes.legend(frameon=False)
    return drawing


def against_size(rows: Sequence[dict[str, Any]]) -> Figure:
    """Plot figure 7: best validation loss against the number of non-zero parameters."""
    drawing, axes = figure()
    for index, (method, label) in enumerate(METHODS.items()):
        points = [row for row in rows if row["method"] == method]
        if not points:
            continue
        points.sort(key=lambda row: row["nonzero"])
        error_bars(axes, [row["nonzero"] for row in points], points, label, index)
    for row in rows:
        if row["method"] == "dense":
            axes.annotate(
                f"{row['model']} x{row['width_multiplier']:g}",
                (row["nonzero"], row["mean"]),
                xytext=(6, 4),
                textcoords="offset points",
                fontsize=8,
                color=PAPER,
            )
    _label_sizes(axes, "non-zero parameters")
    return drawing


def against_bytes(points: Sequence[dict[str, Any]]) -> Figure:
    """Plot the best validation loss of tickets and of rounded models against bytes of storage."""
    drawing, axes = figure()
    for index, name in enumerate(dict.fromkeys(point["name"] for point in points)):
        series = sorted((p for p in points if p["name"] == name), key=lambda p: p["bytes"])
        error_bars(axes, [point["bytes"] for point in series], series, name, index)
    _label_sizes(axes, "bytes of the stored model")
    return drawing


def _label_sizes(axes: Axes, size: str) -> None:
    """Label the axes, loss against `size`, and make the axis of `size` logarithmic."""
    axes.set_xscale("log")
    axes.margins(x=0.12)
    axes.set_xlabel(size)
    axes.set_ylabel(LOSS)
    axes.legend(frameon=False)


def curves(log: Sequence[dict[str, Any]], by: str) -> Figure:
    """Plot validation losses (means over seeds) against steps.

    `by` is the name of a column of the log; each value in this column has a line per model.
    """
    drawing, axes = figure()
    models = list(dict.fromkeys(row["model"] for row in log))
    names = list(dict.fromkeys(row[by] for row in log))
    values = [*(name for name in METHODS if name in names), *(v for v in names if v not in METHODS)]
    for model, style in zip(models, ["-", "--", ":", "-."] * len(models), strict=False):
        for index, value in enumerate(values):
            points = [r for r in log if r["model"] == model and r[by] == value and r["step"] > 0]
            steps = sorted({row["step"] for row in points})
            means = [
                np.mean([r["val_loss"] for r in points if r["step"] == step]) for step in steps
            ]
            label = METHODS.get(value, f"scale {value:g}" if isinstance(value, float) else value)
            axes.plot(
                steps,
                means,
                style,
                color=COLORS[index % len(COLORS)],
                linewidth=1.4,
                label=label if len(models) == 1 else f"{model}, {label}",
            )
    axes.set_xlabel("step")
    axes.set_ylabel(LOSS)
    axes.legend(frameon=False, fontsize=8)
    return drawing
