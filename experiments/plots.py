"""Pictures of the theory's experiments. Measured points, fits of ours, fits of the paper."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
PAPER = "#555555"

Row = Mapping[str, Any]


def figure(width: float = 6.4, height: float = 4.2) -> tuple[Figure, Axes]:
    """Return a figure with one pair of axes in the house style."""
    made, axes = plt.subplots(figsize=(width, height), layout="constrained")
    _style(axes)
    return made, axes


def two(width: float, height: float) -> tuple[Figure, tuple[Axes, Axes]]:
    """Return a figure with two pairs of axes side by side."""
    made, (left, right) = plt.subplots(1, 2, figsize=(width, height), layout="constrained")
    _style(left)
    _style(right)
    return made, (left, right)


def _style(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, which="major", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def error_curve(
    axes: Axes, x: Sequence[float], rows: Sequence[Row], label: str, index: int
) -> None:
    """Draw means as points with a line, the standard deviation as a band, on a log axis."""
    x_ = np.asarray(x, float)
    mean = np.array([row["mean"] for row in rows])
    std = np.array([row["std"] for row in rows])
    color = COLORS[index % len(COLORS)]
    axes.plot(x_, mean, "o-", color=color, markersize=4, linewidth=1.4, label=label)
    low = np.maximum(mean - std, mean / 10)  # a log axis has no room for zero and below
    axes.fill_between(x_, low, mean + std, color=color, alpha=0.15, linewidth=0)


def curve(
    axes: Axes,
    x: Sequence[float],
    function: Callable[[np.ndarray], np.ndarray],
    label: str,
    *,
    color: str = PAPER,
    style: str = "--",
) -> None:
    """Draw a formula over the range of `x`."""
    grid = np.linspace(min(x), max(x), 200)
    axes.plot(grid, function(grid), style, color=color, linewidth=1.2, label=label)


def caption(figure: Figure) -> str:
    """Return in words what a figure shows: titles, axes and curves, for who cannot see it."""
    told = [figure.get_suptitle()]
    for axes in figure.axes:
        curves = dict.fromkeys(axes.get_legend_handles_labels()[1])
        told += [
            axes.get_title(),
            f"{axes.get_ylabel()}, against {axes.get_xlabel()}",
            f"curves: {'; '.join(curves)}" if curves else "",
        ]
    return ". ".join(re.sub(r"[${}\\]", "", part) for part in told if part)


def exponential(gamma: float, delta: float) -> Callable[[np.ndarray], np.ndarray]:
    """Return ``n -> gamma exp(-delta n)``."""
    return lambda n: gamma * np.exp(-delta * n)
