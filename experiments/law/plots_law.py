"""Plot the figures of the law: widths against errors, shares of sources, all constructions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.law.regression import SMALL_ERRORS
from experiments.plots import COLORS, PAPER, figure, several, two

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]
MARKERS = "os^Dv<>P*X"


def law(widths: Sequence[Row], bits: dict[str, Any]) -> Figure:
    """Plot ``n / d`` against ``log2(1 / eps)``, and the fit `bits` with a line of slope 1.

    The colour shows d and the marker H.

    Args:
      widths: the least widths for one target and one construction.
      bits: the fit of `regression.in_bits`.
    """
    drawing, (left, right) = two(7.6, 5.2)
    constants = {(s["d"], s["heads"]): s["c"] for s in bits.get("shapes", [])}
    d_values = sorted({row["d"] for row in widths})
    h_values = sorted({row["heads"] for row in widths})
    palette = (*COLORS, "#000000", "#999999")
    for d, h in dict.fromkeys((row["d"], row["heads"]) for row in widths):
        rows = [row for row in widths if (row["d"], row["heads"]) == (d, h)]
        style: dict[str, Any] = {
            "color": palette[d_values.index(d) % len(palette)],
            "marker": MARKERS[h_values.index(h) % len(MARKERS)],
            "markersize": 5,
            "linewidth": 0.8,
        }
        x = -np.log2([row["eps"] for row in rows])
        units = np.array([row["width"] / d for row in rows])
        left.plot(x, units, label=f"d = {d}, H = {h}", **style)
        if (d, h) in constants:
            style |= {"linestyle": "none"}
            right.plot(x, units - np.log2(units) / 2 - constants[d, h], **style)
    left.set_ylabel("least width n / d for mean error eps")
    if constants:
        _line(right, widths, bits)
    for axes in (left, right):
        axes.set_xlabel("bits of precision, log2(1 / eps)")
    if widths:
        shapes = left.get_legend_handles_labels()
        drawing.legend(*shapes, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return drawing


def _line(axes: Axes, widths: Sequence[Row], bits: dict[str, Any]) -> None:
    """Plot the line of slope 1 and the range of errors that the fit uses."""
    grid = -np.log2([max(row["eps"] for row in widths), min(row["eps"] for row in widths)])
    axes.plot(grid, grid, "--", color=PAPER, label="one unit per bit")
    axes.axvspan(-np.log2(SMALL_ERRORS), grid[1], color="#e8e8e8", zorder=0, label="fitted range")
    axes.set_ylabel("n / d - log2(n / d) / 2 - c(d, H)")
    axes.set_title(
        f"slope {bits['slope']:.2f} [{bits['low']:.2f}, {bits['high']:.2f}]", fontsize=10
    )
    axes.legend(frameon=False, fontsize=9)


def transition(shares: Sequence[Row]) -> Figure:
    """Plot, against the width, the share of sources whose ticket has at most a given error.

    There is one panel per error. `shares` is the result of `width_law.shares`; only the four
    largest d are shown.
    """
    levels = sorted({row["eps"] for row in shares}, reverse=True)
    drawing, panels = _panels(len(levels))
    for axes, eps in zip(panels, levels, strict=False):  # none without shapes of one head
        for color, d in zip(COLORS, sorted({row["d"] for row in shares})[-4:], strict=False):
            rows = [row for row in shares if (row["d"], row["eps"]) == (d, eps)]
            x, y = ([row[column] for row in rows] for column in ("units", "share"))
            axes.plot(x, y, "o-", color=color, markersize=4, label=f"d = {d}")
        axes.set_xlabel("width n / d")
        axes.set_title(f"error {eps:g}", fontsize=11)
    if shares:
        panels[0].set_ylabel("share of sources that suffice")
        panels[-1].legend(frameon=False, fontsize=9)
    return drawing


def rivals(summary: Sequence[Row]) -> Figure:
    """Plot the mean error against the width for every rule and target, with one panel per d.

    Only rows with one head are shown.
    """
    kinds = list(dict.fromkeys((row["target"], row["construction"]) for row in summary))
    targets, rules = (list(dict.fromkeys(names)) for names in zip(*kinds, strict=True))
    d_values = sorted({row["d"] for row in summary if row["heads"] == 1})
    shown = [d for d in d_values if d in (4, 16)] or d_values[:1]
    drawing, panels = _panels(len(shown))
    for axes, d in zip(panels, shown, strict=True):
        for target, rule in kinds:
            names = {"heads": 1, "d": d, "target": target, "construction": rule}
            part = [row for row in summary if all(row[k] == v for k, v in names.items())]
            axes.plot(
                [row["width"] / d for row in part],
                [row["mean"] for row in part],
                ("-", "--")[targets.index(target) % 2],
                marker=MARKERS[targets.index(target) % len(MARKERS)],
                markersize=4,
                color=COLORS[rules.index(rule) % len(COLORS)],
                label=f"{rule}, {target} targets",
            )
        axes.set_yscale("log")
        axes.set_xlabel("width n / d")
        axes.set_title(f"d = {d}", fontsize=11)
    panels[0].set_ylabel("mean error of the ticket")
    panels[0].legend(frameon=False, fontsize=9)
    return drawing


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    """Return a figure and its `count` panels (at least one), which share the vertical axis."""
    if count < 2:
        drawing, axes = figure()
        return drawing, [axes]
    drawing, panels = several(count, 7.6, 4.0, shared=True)
    return drawing, list(panels)
