"""The figure of the bounds: their growth with the input bound, the input length and the depth."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import plots
from experiments.guarantees.trial import LENGTHS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = {"error": "measured", "bound_on": "guaranteed, these inputs", "bound": "guaranteed, all"}


def growth(trials: Sequence[dict[str, Any]], depths: Sequence[int]) -> Figure:
    """Draw medians of the error and of both bounds against input bound, input length and depth."""
    figure, (by_alpha, by_length, by_depth) = plots.several(3, 12.0, 4.2)
    edges = 2 ** np.linspace(-2, 2, 9)
    for index, (kind, label) in enumerate(KINDS.items()):
        at = {depth: [row for row in trials if row["num_blocks"] == depth] for depth in depths}
        for depth, style in ((min(depths), "-"), (max(depths), "--")):
            rows = at[depth]
            middle = [
                [row for row in rows if low <= row["alpha"] < high]
                for low, high in itertools.pairwise(edges)
            ]
            of_length = [[row for row in rows if row["length"] == t] for t in LENGTHS]
            for axes, where, groups in (
                (by_alpha, np.sqrt(edges[1:] * edges[:-1]), middle),
                (by_length, np.array(LENGTHS), of_length),
            ):
                _line(axes, where, groups, kind, label, index, style)
        _line(by_depth, np.array(depths), list(at.values()), kind, label, index, "-")
    for axes, name in ((by_alpha, r"input bound $\alpha$"), (by_length, "input length $T$")):
        axes.set_xscale("log", base=2)
        axes.set_xlabel(name)
    by_depth.set_xlabel("blocks $B$")
    for axes in (by_alpha, by_length, by_depth):
        axes.set_yscale("log")
    by_alpha.set_ylabel("largest error of a row, median")
    by_depth.legend(frameon=False, fontsize=9)
    least, most = min(depths), max(depths)
    figure.suptitle(
        "Tickets in random transformers, measured and guaranteed "
        f"(left, middle: solid B = {least}, dashed B = {most})"
    )
    return figure


def _line(axes, where, groups, kind, label, index, style) -> None:
    kept = [(x, [row[kind] for row in group]) for x, group in zip(where, groups, strict=True)]
    kept = [(x, values) for x, values in kept if values]
    axes.plot(
        [x for x, _ in kept],
        [np.median(values) for _, values in kept],
        style,
        marker="o",
        markersize=3,
        color=plots.COLORS[index],
        linewidth=1.3,
        label=label,
    )
