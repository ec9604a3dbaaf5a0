"""Colours and axes of all figures, and a function that saves figures."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from slth_jax import checks, storage

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can distinguish.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
PAPER = "#555555"
_FORMATS = (".png", ".svg", ".pdf")


def blank(width: float, height: float) -> Figure:
    """Return a figure that has no axes and is not managed by pyplot.

    Raises:
      ModuleNotFoundError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        message = 'figures need matplotlib: pip install "slth-jax[plots]"'
        raise ModuleNotFoundError(message) from error
    return Figure(figsize=(width, height), layout="constrained")


def figure(width: float = 6.4, height: float = 4.2) -> tuple[Figure, Axes]:
    """Return a figure with one pair of axes in the common style; sizes are in inches."""
    drawing = blank(width, height)
    axes = drawing.subplots()
    _style(axes)
    return drawing, axes


def two(width: float, height: float, *, shared: bool = False) -> tuple[Figure, tuple[Axes, Axes]]:
    """Return a figure with two pairs of axes side by side; sizes are in inches."""
    drawing, (left, right) = several(2, width, height, shared=shared)
    return drawing, (left, right)


def several(
    count: int, width: float, height: float, *, shared: bool = False
) -> tuple[Figure, tuple[Axes, ...]]:
    """Return a figure with `count` >= 2 pairs of axes side by side; sizes are in inches.

    If `shared` is true, all pairs share one vertical axis.
    """
    drawing = blank(width, height)
    panels = drawing.subplots(1, count, sharey=shared)
    for axes in panels:
        _style(axes)
    return drawing, tuple(panels)


def save(figure: Any, path: str | os.PathLike[str], *, dpi: int = 160) -> None:
    """Write a figure as PNG, SVG or PDF, atomically; `dpi` is the resolution of a PNG.

    Raises:
      ValueError: `path` does not end in '.png', '.svg' or '.pdf'.
      CheckpointError: the file cannot be written.
    """
    path = storage.place(path)
    if path.suffix not in _FORMATS:
        raise checks.fail("path", "NAME.png, NAME.svg or NAME.pdf", repr(str(path)))
    with storage.writing(path) as file:
        figure.savefig(file, format=path.suffix[1:], dpi=dpi, bbox_inches="tight")


def _style(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, which="major", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
