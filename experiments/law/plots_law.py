"""Figures of the law: widths against errors, the transition, and the constructions compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.law.regression import SMALL_ERRORS
from experiments.plots import COLORS, PAPER, figure, two

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]
MARKERS = "os^Dv<>P*X"


def law(widths: Sequence[Row], bits: dict[str, Any]) -> Figure:
    """Draw ``n / d`` against ``log2(1 / eps)``, and the law in bits beside the line of slope 1.

    The colour shows d and the marker H.

    Args:
      widths: the least widths for one target and one construction.
      bits: the fit of `regression.in_bits`.
    """
    drawing, (left, right) = two(11.0, 4.8)
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
    left.legend(frameon=False, fontsize=8, ncols=2)
    if constants:
        _line(right, widths, bits)
    for axes in (left, right):
        axes.set_xlabel("bits of precision, log2(1 / eps)")
    return drawing


def _line(axes: Axes, widths: Sequence[Row], bits: dict[str, Any]) -> None:
    """Draw the line of slope 1 and the range of errors that the fit uses."""
    grid = -np.log2([max(row["eps"] for row in widths), min(row["eps"] for row in widths)])
    axes.plot(grid, grid, "--", color=PAPER, label="one unit per bit")
    axes.axvspan(-np.log2(SMALL_ERRORS), grid[1], color="#f2f2f2", zorder=0, label="fitted range")
    axes.set_ylabel("n / d - log2(n / d) / 2 - c(d, H)")
    axes.set_title(
        f"slope {bits['slope']:.2f} [{bits['low']:.2f}, {bits['high']:.2f}]", fontsize=10
    )
    axes.legend(frameon=False, fontsize=9)


def transition(rows: Sequence[Row], config: Any) -> Figure:
    """Draw, against the width, the share of sources whose ticket has at most a given error."""
    drawing, axes = figure()
    target, rule = config.targets[0], config.constructions[0]
    chosen = [row for row in rows if row["target"] == target and row["construction"] == rule]
    levels = [eps for eps in (1.0, 0.1, 0.01) if eps in config.errors] or config.errors[:1]
    d_values = sorted({row["d"] for row in chosen if row["heads"] == 1})[-4:]
    for color, d in zip(COLORS, d_values, strict=False):
        part = [row for row in chosen if row["d"] == d and row["heads"] == 1]
        units = sorted({row["units"] for row in part})
        for style, eps in zip(("-", "--", ":"), levels, strict=False):
            share = [
                np.mean([row["error"] <= eps for row in part if row["units"] == unit])
                for unit in units
            ]
            label = f"d = {d}, eps = {eps:g}"
            axes.plot(units, share, style, color=color, marker="o", markersize=3, label=label)
    axes.set_xlabel("width n / d")
    axes.set_ylabel("share of sources with a ticket of error eps")
    axes.set_title(f"{rule}, {target} targets", fontsize=10)
    if d_values:
        axes.legend(frameon=False, fontsize=8)
    return drawing


def rivals(summary: Sequence[Row]) -> Figure:
    """Draw the mean error against the width for every rule and target, with one head."""
    drawing, axes = figure()
    kinds = list(dict.fromkeys((row["target"], row["construction"]) for row in summary))
    d_values = sorted({row["d"] for row in summary if row["heads"] == 1})
    shown = [d for d in d_values if d in (4, 16)] or d_values[:1]
    for i, d in enumerate(shown):
        for j, (target, rule) in enumerate(kinds):
            part = [
                row
                for row in summary
                if row["heads"] == 1
                and row["d"] == d
                and (row["target"], row["construction"]) == (target, rule)
            ]
            axes.plot(
                [row["width"] / d for row in part],
                [row["mean"] for row in part],
                ("-", "--")[i % 2],
                marker=MARKERS[i],
                markersize=3,
                color=COLORS[j % len(COLORS)],
                label=f"d = {d}, {rule}, {target} target",
            )
    axes.set_yscale("log")
    axes.set_xlabel("width n / d")
    axes.set_ylabel("mean error of the ticket")
    axes.legend(frameon=False, fontsize=8)
    return drawing
