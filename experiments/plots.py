"""Plot the parts that figures share: means with bands, curves of formulas, captions."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from slth_jax.plots import COLORS, PAPER, band, figure, save, several, two

if TYPE_CHECKING:  # --help and --dry-run work without matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "COLORS",
    "PAPER",
    "caption",
    "curve",
    "error_bars",
    "error_curve",
    "exponential",
    "figure",
    "legend_below",
    "save",
    "several",
    "two",
]

Row = Mapping[str, Any]


def error_curve(
    axes: Axes,
    x: Sequence[float],
    rows: Sequence[Row],
    label: str,
    index: int,
    *,
    low: str = "low",
    high: str = "high",
) -> None:
    """Plot means as points on a line, and a band between the columns `low` and `high`."""
    mean, bottom, top = (np.array([row[name] for row in rows]) for name in ("mean", low, high))
    color = COLORS[index % len(COLORS)]
    band(axes, np.asarray(x, float), mean, bottom, top, label=label, color=color)


def error_bars(axes: Axes, x: Sequence[float], rows: Sequence[Row], label: str, index: int) -> None:
    """Plot means with error bars of one standard deviation over seeds above and below."""
    mean, std = ([row[name] for row in rows] for name in ("mean", "std"))
    color = COLORS[index % len(COLORS)]
    axes.errorbar(x, mean, std, fmt="o-", capsize=3, markersize=5, color=color, label=label)


def curve(
    axes: Axes,
    x: Sequence[float],
    function: Callable[[np.ndarray], np.ndarray],
    label: str,
    *,
    color: str = PAPER,
    style: str = "--",
) -> None:
    """Plot a function over the range of `x`."""
    grid = np.linspace(min(x), max(x), 200)
    axes.plot(grid, function(grid), style, color=color, linewidth=1.2, label=label)


def legend_below(axes: Axes, columns: int = 1) -> None:
    """Put the legend below the axes, so that it hides no point; its size suits narrow screens."""
    axes.legend(
        frameon=False, fontsize=9, ncols=columns, loc="upper center", bbox_to_anchor=(0.5, -0.16)
    )


def caption(figure: Figure) -> str:
    """Return a figure's titles, axis labels and curves as text, for readers who cannot see it."""
    parts = [figure.get_suptitle()]
    for axes in figure.axes:
        curves = dict.fromkeys(axes.get_legend_handles_labels()[1])
        parts += [
            axes.get_title(),
            f"{axes.get_ylabel()}, against {axes.get_xlabel()}",
            f"curves: {'; '.join(curves)}" if curves else "",
        ]
    return ". ".join(re.sub(r"[${}\\]", "", part) for part in parts if part)


def exponential(gamma: float, delta: float) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function ``n -> gamma exp(-delta n)``."""
    return lambda n: gamma * np.exp(-delta * n)
