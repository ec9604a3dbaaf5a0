"""Plot how the error bounds grow with the input bound, the input length and the depth."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import plots
from experiments.guarantees.trial import LENGTHS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = {
    "error": "measured",
    "bound_on": "guaranteed, given input",
    "bound": "guaranteed, all inputs",
}
PANELS = {"alpha": r"input bound $\alpha$", "length": "input length $T$", "depth": "blocks $B$"}


def medians(trials: Sequence[dict[str, Any]], depths: Sequence[int]) -> list[dict[str, Any]]:
    """Return medians of error and bounds by input bound, by input length, and by depth.

    A row contains the name `panel` of a panel of the figure, the position `x` on the panel's
    horizontal axis, the depth `num_blocks`, and a median for each key of `KINDS`. Input bounds are
    grouped into intervals in which the largest is sqrt(2) times the smallest.
    """
    edges = 2 ** np.linspace(-2, 2, 9)
    groups: list[tuple[str, float, int, list[dict[str, Any]]]] = []
    for depth in depths:
        rows = [row for row in trials if row["num_blocks"] == depth]
        groups.append(("depth", depth, depth, rows))
        if depth not in (min(depths), max(depths)):
            continue
        for low, high in itertools.pairwise(edges):
            inside = [row for row in rows if low <= row["alpha"] < high]
            groups.append(("alpha", float(np.sqrt(low * high)), depth, inside))
        for length in LENGTHS:
            of_length = [row for row in rows if row["length"] == length]
            groups.append(("length", length, depth, of_length))
    return [
        {"panel": panel, "x": x, "num_blocks": depth}
        | {kind: float(np.median([row[kind] for row in rows])) for kind in KINDS}
        for panel, x, depth, rows in groups
        if rows
    ]


def growth(points: Sequence[dict[str, Any]]) -> Figure:
    """Plot the medians of error and bounds against input bound, input length and depth."""
    figure, panels = plots.several(3, 8.4, 4.0)
    least, most = (function(point["num_blocks"] for point in points) for function in (min, max))
    for axes, (panel, name) in zip(panels, PANELS.items(), strict=True):
        chosen = [point for point in points if point["panel"] == panel]
        # Depth is the horizontal axis of the last panel, and a kind of line in the others.
        series = [(chosen, "-")]
        if panel != "depth":
            series = [
                ([point for point in chosen if point["num_blocks"] == depth], style)
                for depth, style in {most: "--", least: "-"}.items()
            ]
            axes.set_xscale("log", base=2)
        for rows, style in series:
            for color, kind in zip(plots.COLORS, KINDS, strict=False):
                x, y = ([row[column] for row in rows] for column in ("x", kind))
                label = KINDS[kind] if style == "-" else None
                axes.plot(x, y, f"o{style}", color=color, markersize=3, label=label)
        axes.set_yscale("log")
        axes.set_xlabel(name)
    panels[0].set_ylabel("largest error of a row, median")
    handles = panels[-1].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3, frameon=False, fontsize=10)
    figure.suptitle(f"Measured and guaranteed errors (solid: B = {least}, dashed: B = {most})")
    return figure
