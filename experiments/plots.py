"""Pictures of the theory's experiments. Measured points, fits of ours, fits of the paper."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from slth_jax.plots import COLORS, PAPER, band, figure, save, several, two

if TYPE_CHECKING:  # help and estimates do without matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "COLORS",
    "PAPER",
    "caption",
    "curve",
    "error_curve",
    "exponential",
    "figure",
    "save",
    "several",
    "two",
]

Row = Mapping[str, Any]


def error_curve(
    axes: Axes, x: Sequence[float], rows: Sequence[Row], label: str, index: int
) -> None:
    """Draw means as points with a line, the standard deviation as a band, on a log axis."""
    x_ = np.asarray(x, float)
    mean = np.array([row["mean"] for row in rows])
    std = np.array([row["std"] for row in rows])
    low = np.maximum(mean - std, mean / 10)  # a log axis has no room for zero and below
    band(axes, x_, mean, low, mean + std, label=label, color=COLORS[index % len(COLORS)])


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
