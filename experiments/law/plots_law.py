"""Pictures of the law: collapse, transition, constructions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.plots import COLORS, PAPER, figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, Any]
MARKERS = "os^Dv<>P*X"


def collapse(widths: Sequence[Row], laws: dict[str, Any]) -> Figure:
    """Draw ``n / d`` against ``log(H d^(3/2) / eps)``: one line if the law holds."""
    made, axes = figure()
    first = [w for w in widths if w["target"] == widths[0]["target"]] if widths else []
    for color, rule in zip(COLORS, dict.fromkeys(w["construction"] for w in first), strict=False):
        here = [w for w in first if w["construction"] == rule]
        shapes = list(dict.fromkeys((w["d"], w["heads"]) for w in here))
        for i, (d, heads) in enumerate(shapes):
            part = [w for w in here if (w["d"], w["heads"]) == (d, heads)]
            axes.plot(
                [np.log(heads * d**1.5 / w["eps"]) for w in part],
                [w["width"] / d for w in part],
                MARKERS[i % len(MARKERS)],
                color=color,
                markersize=4,
                alpha=0.75,
                label=f"d = {d}, H = {heads}" if color == COLORS[0] else None,
            )
        law = laws.get(f"{first[0]['target']}, {rule}")
        if law:
            x = np.array([np.log(w["heads"] * w["d"] ** 1.5 / w["eps"]) for w in here])
            grid = np.linspace(x.min(), x.max(), 2)
            line = law["line"]
            axes.plot(
                grid,
                line["intercept"] + line["slope"] * grid,
                "--",
                color=color,
                linewidth=1.2,
                label=f"{rule}: {line['intercept']:.1f} + {line['slope']:.2f} x",
            )
    axes.set_xlabel("log(H d^(3/2) / eps)")
    axes.set_ylabel("least width n / d for mean error eps")
    axes.legend(frameon=False, fontsize=6, ncols=2)
    return made


def transition(rows: Sequence[Row], config: Any) -> Figure:
    """Draw the share of sources whose ticket meets an error against the width."""
    made, axes = figure()
    target, rule = config.targets[0], config.constructions[0]
    here = [row for row in rows if row["target"] == target and row["construction"] == rule]
    shown = [eps for eps in (1.0, 0.1, 0.01) if eps in config.errors] or config.errors[:1]
    d_values = sorted({row["d"] for row in here if row["heads"] == 1})[-4:]
    for color, d in zip(COLORS, d_values, strict=False):
        part = [row for row in here if row["d"] == d and row["heads"] == 1]
        units = sorted({row["units"] for row in part})
        for style, eps in zip(("-", "--", ":"), shown, strict=False):
            share = [
                np.mean([row["error"] <= eps for row in part if row["units"] == unit])
                for unit in units
            ]
            axes.plot(
                units,
                share,
                style,
                color=color,
                marker="o",
                markersize=3,
                label=f"d = {d}, eps = {eps:g}",
            )
    axes.set_xlabel("width n / d")
    axes.set_ylabel("share of sources that suffice")
    axes.set_title(f"{rule}, {target} targets", fontsize=10)
    if d_values:
        axes.legend(frameon=False, fontsize=7)
    return made


def rivals(summary: Sequence[Row]) -> Figure:
    """Draw the mean error against the width for every rule and target, one head."""
    made, axes = figure()
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
                color=COLORS[j % len(COLORS)] if kinds else PAPER,
                label=f"d = {d}, {rule}, {target} target",
            )
    axes.set_yscale("log")
    axes.set_xlabel("width n / d")
    axes.set_ylabel("mean error of the ticket")
    axes.legend(frameon=False, fontsize=6)
    return made
