"""Plot the errors of single matrix entries, and the errors of tickets against the width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from slth_jax import checks
from slth_jax.plots import style
from slth_jax.types import ArrayLike, AttentionParams

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def band(
    axes: Axes,
    x: Sequence[float] | ArrayLike,
    middle: ArrayLike,
    low: ArrayLike,
    high: ArrayLike,
    *,
    label: str,
    color: str,
) -> None:
    """Plot the points `middle`, joined by a line, and the band between `low` and `high`."""
    axes.plot(x, middle, "o-", color=color, markersize=4, linewidth=1.4, label=label)
    axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)


def error_bands(
    widths: Sequence[float],
    errors: ArrayLike | Mapping[str, ArrayLike],
    *,
    xlabel: str = "hidden units of the source",
    ylabel: str = "error",
    log: bool = True,
) -> Figure:
    """Plot the median error against the width, and bands that contain 50 % and 90 % of the seeds.

    Args:
      widths: n widths, or n values of another variable, such as steps.
      errors: the errors `[seeds, n]`, or a dict from the name of a curve to such an array.
      xlabel: label of the horizontal axis.
      ylabel: label of the vertical axis.
      log: whether the vertical axis is logarithmic; errors of 0 are then left out.

    Raises:
      ValueError: the errors do not have one column per width, or an error is not finite.
    """
    curves = errors if isinstance(errors, Mapping) else {"": errors}
    drawing, axes = style.figure()
    for index, (name, values) in enumerate(curves.items()):
        seeds = np.asarray(
            checks.array(f"errors {name}".strip(), values, shape=(None, len(widths))), float
        )
        if log:
            seeds = np.where(seeds > 0, seeds, np.nan)
        lowest, low, middle, high, highest = np.nanquantile(
            seeds, (0.05, 0.25, 0.5, 0.75, 0.95), axis=0
        )
        color = style.COLORS[index % len(style.COLORS)]
        summary = f"median of {len(seeds)} seeds"
        label = f"{name}, {summary}" if name else summary
        band(axes, widths, middle, low, high, label=label, color=color)
        axes.fill_between(widths, lowest, highest, color=color, alpha=0.1, linewidth=0)
    if log:
        axes.set_yscale("log")
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.set_title("dark band: half of the seeds; light band: nine tenths", fontsize=9, loc="left")
    axes.legend(frameon=False, fontsize=9)
    return drawing


def entry_errors(
    tickets: AttentionParams | Mapping[str, AttentionParams], target: AttentionParams
) -> Figure:
    """Plot the cumulative distribution of the entrywise errors of the merged matrices.

    The matrices are ``w_qk = w_q w_k^T / sqrt(k)`` and ``w_vo = w_v w_o`` of all heads, multiplied
    in float64. A dashed line shows the rounding error of float32. This rounding error is ``2^-24``
    times the largest magnitude of the target's entries, about half the distance between
    neighbouring float32 numbers of this magnitude.

    Args:
      tickets: a ticket (source times masks), or a dict from the name of a curve to a ticket.
      target: attention with the same heads, inputs and outputs.

    Raises:
      ValueError: the shapes of a ticket do not match those of the target.
    """
    # A single ticket is a NamedTuple, which is not a mapping.
    several = tickets if isinstance(tickets, Mapping) else {"ticket": tickets}
    wished = _merged(target)
    drawing, panels = style.two(9.0, 3.6)
    for place, (axes, title) in enumerate(
        zip(panels, ("query-key matrix", "value-output matrix"), strict=True)
    ):
        floor = 2.0**-24 * max(np.abs(wished[place]).max(), np.finfo(np.float32).tiny)
        for index, (name, ticket) in enumerate(several.items()):
            merged = _merged(ticket)[place]
            if merged.shape != wished[place].shape:
                allowed = f"a merged matrix of shape {wished[place].shape}"
                raise checks.fail(f"tickets {name!r}", allowed, merged.shape)
            errors = np.sort(np.abs(merged - wished[place]).ravel())
            share = np.arange(1, errors.size + 1) / errors.size
            color = style.COLORS[index % len(style.COLORS)]
            # Exact entries are plotted at the left edge, because a logarithmic axis has no 0.
            axes.step(np.maximum(errors, floor / 100), share, where="post", color=color, label=name)
        axes.axvline(
            floor, color=style.PAPER, linestyle="--", linewidth=1.2, label="float32 rounding"
        )
        axes.set_xscale("log")
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("error of an entry")
        axes.set_title(title, fontsize=10)
    panels[0].set_ylabel("share of entries within this error")
    panels[1].legend(frameon=False, fontsize=8)
    return drawing


def _merged(params: AttentionParams) -> tuple[np.ndarray, np.ndarray]:
    """Return the merged matrices ``w_qk`` and ``w_vo`` of all heads in float64."""
    weights = (params.w_q, params.w_k, params.w_v, params.w_o)
    w_q, w_k, w_v, w_o = (np.asarray(w, np.float64) for w in weights)
    return (
        np.einsum("hmk,hnk->hmn", w_q, w_k) / np.sqrt(np.asarray(params.key_width, float)),
        np.einsum("hmv,hvo->hmo", w_v, w_o),
    )
