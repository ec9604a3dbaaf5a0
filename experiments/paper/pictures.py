"""Figures 4 and 5, with drawn and trained targets side by side, and the bend of figure 4."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from experiments import plots

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLES = {"drawn": "targets drawn from the theory", "trained": "the trained target"}
# The lower end of the error axis.
LEAST = 1e-10

Rows = Sequence[Mapping[str, Any]]


def hidden_dim(
    config: Any, series: Mapping[tuple[str, str], Rows], summary: Mapping[str, Any]
) -> Figure:
    """Draw figure 4: mean error against width, in a panel per kind of target."""
    kinds = [kind for kind in TITLES if kind in config.target]
    figure, panels = _panels(kinds)
    for axes, kind in zip(panels, kinds, strict=True):
        for index, source in enumerate(config.sources):
            rows = series[kind, source]
            name = f"{source.replace('_', ', ')} source: " if len(config.sources) > 1 else ""
            _means(axes, "width", rows, kind, config, index, name)
        fit = summary.get("fit_drawn" if kind == "drawn" else "fit")
        if fit:
            label = f"our fit {fit['gamma']:.2g} exp(-{fit['delta']:.2g} n)"
            line = plots.exponential(fit["gamma"], fit["delta"])
            plots.curve(axes, config.widths, line, label, color=plots.COLORS[0])
        paper = summary["paper"]
        label = f"paper's fit {paper['gamma']} exp(-{paper['delta']} n)"
        plots.curve(axes, config.widths, plots.exponential(**paper), label, style=":")
        if kind == "trained":
            _guarantees(
                axes, [r for r in summary["guarantees"] if r["source"] == config.sources[0]]
            )
        axes.set_yscale("log")
        axes.set_ylim(bottom=LEAST)
        axes.set_xlabel("source width $n_K = n_V$")
        axes.legend(frameon=False, fontsize=8, loc="lower left")
    panels[0].set_ylabel("error of the ticket")
    figure.suptitle(f"Tickets in random attention, sequences of {config.length} tokens")
    return figure


def input_length(config: Any, series: Mapping[tuple[str, int], Rows]) -> Figure:
    """Draw figure 5: mean error against input length, in a panel per kind of target."""
    kinds = [kind for kind in TITLES if kind in config.target]
    figure, panels = _panels(kinds)
    for axes, kind in zip(panels, kinds, strict=True):
        for index, width in enumerate(config.widths):
            _means(axes, "length", series[kind, width], kind, config, index, f"n = {width}: ")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("length of the input $T$")
        axes.legend(frameon=False, fontsize=8)
    panels[0].set_ylabel("error of the ticket")
    figure.suptitle("Tickets in random attention, applied to inputs of any length")
    return figure


def bend(split: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the mean error by whether a source reaches all values, and the share that does not."""
    figure, (left, right) = plots.two(9.6, 4.0)
    for name, label, color in (
        ("mean", "all sources", plots.PAPER),
        ("mean_beyond", "a value is out of reach", plots.COLORS[1]),
        ("mean_within", "all values within reach", plots.COLORS[0]),
    ):
        rows = [row for row in split if row[name]]
        x, y = ([row[column] for row in rows] for column in ("width", name))
        left.plot(x, y, "o-", markersize=4, color=color, label=label)
    left.set_yscale("log")
    left.set_xlabel("source width $n_K = n_V$")
    left.set_ylabel("mean error of the ticket")
    left.legend(frameon=False, fontsize=9)
    right.plot([row["width"] for row in split], [row["beyond"] for row in split], "o-")
    right.set_xlabel("source width $n_K = n_V$")
    right.set_ylabel("share of sources with a value out of reach")
    figure.suptitle("Why figure 4 bends: the trained target's mean error, split by reach")
    return figure


def _panels(kinds: Sequence[str]) -> tuple[Figure, list[Axes]]:
    if len(kinds) > 1:
        figure, (left, right) = plots.two(10.0, 4.6, shared=True)
        panels = [left, right]
    else:
        figure, axes = plots.figure()
        panels = [axes]
    for axes, kind in zip(panels, kinds, strict=True):
        axes.set_title(TITLES[kind], fontsize=11)
    return figure, panels


def _means(axes, by, rows, kind, config, index, label) -> None:
    """Draw means and a band of quantiles, over sources or over the mean errors of targets."""
    x = [row[by] for row in rows]
    if kind == "drawn":
        count = f"mean of {config.targets} targets, {config.seeds} sources each"
        low, high, band = "targets_low", "targets_high", "10 to 90 % of the targets"
    else:
        count = f"mean of {config.seeds} sources"
        low, high, band = "low", "high", "10 to 90 % of the sources"
    plots.error_curve(axes, x, rows, f"{label}{count};\nband: {band}", index, low=low, high=high)


def _guarantees(axes: Axes, rows: Rows) -> None:
    """Draw, at each width, the guaranteed and the measured error of the ticket of seed 0."""
    x = [row["width"] for row in rows]
    for name, marker, label in (("bound", "v", "guaranteed"), ("error", "x", "measured")):
        y = [row[name] for row in rows]
        axes.plot(x, y, marker, color=plots.COLORS[4], markersize=5, label=f"source 0: {label}")
