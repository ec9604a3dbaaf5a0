"""Plot figures 4 and 5 (random and trained targets side by side), figure 6, and figure 4's bend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from experiments import plots

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLES = {"drawn": "targets drawn from the theory", "trained": "the trained target"}
# The lower end of the axis of errors.
LEAST = 1e-9

Rows = Sequence[Mapping[str, Any]]


def hidden_dim(
    config: Any, series: Mapping[tuple[str, str], Rows], summary: Mapping[str, Any]
) -> Figure:
    """Plot figure 4: mean error against width, with one panel for each kind of target."""
    kinds = [kind for kind in TITLES if kind in config.target]
    figure, panels = _panels(kinds)
    for axes, kind in zip(panels, kinds, strict=True):
        for index, source in enumerate(config.sources):
            rows = series[kind, source]
            name = f"{source.replace('_', ', ')} source: " if len(config.sources) > 1 else ""
            _means(axes, "width", rows, kind, config, index, name)
        fit = summary.get("fit_drawn" if kind == "drawn" else "fit")
        if fit:
            label = f"our fit: {fit['gamma']:.2g} exp(-{fit['delta']:.2g} n)"
            line = plots.exponential(fit["gamma"], fit["delta"])
            plots.curve(axes, config.widths, line, label, color=plots.COLORS[0])
        paper = summary["paper"]
        label = f"paper's fit: {paper['gamma']} exp(-{paper['delta']} n)"
        plots.curve(axes, config.widths, plots.exponential(**paper), label, style=":")
        if kind == "trained":
            _guarantees(
                axes, [r for r in summary["guarantees"] if r["source"] == config.sources[0]]
            )
        axes.set_yscale("log")
        axes.set_ylim(bottom=LEAST)
        axes.set_xlabel("source width $n_K = n_V$")
        plots.legend_below(axes)
    panels[0].set_ylabel("error of the ticket")
    figure.suptitle(f"Tickets in random attention, sequences of {config.length} tokens")
    return figure


def input_length(config: Any, series: Mapping[tuple[str, int], Rows]) -> Figure:
    """Plot figure 5: mean error against input length, with one panel for each kind of target."""
    kinds = [kind for kind in TITLES if kind in config.target]
    figure, panels = _panels(kinds)
    for axes, kind in zip(panels, kinds, strict=True):
        for index, width in enumerate(config.widths):
            _means(axes, "length", series[kind, width], kind, config, index, f"n = {width}: ")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("length of the input $T$")
        plots.legend_below(axes)
    panels[0].set_ylabel("error of the ticket")
    figure.suptitle("Tickets in random attention, applied to longer and longer inputs")
    return figure


def blocks(seeds: int, rows: Rows, fit: Mapping[str, Any], paper_range: tuple[int, int]) -> Figure:
    """Plot figure 6: mean error against width, with a curve per number of blocks.

    The fitted curves share one decay rate.
    """
    figure, axes = plots.figure(6.4, 5.0)
    axes.axvspan(*paper_range, color="#dddddd", zorder=0, label="range of the paper's figure")
    for index, depth in enumerate(sorted({row["num_blocks"] for row in rows})):
        of_depth = [row for row in rows if row["num_blocks"] == depth]
        label = f"{depth} block" + "s" * (depth > 1)
        plots.error_curve(axes, [row["width"] for row in of_depth], of_depth, label, index)
        part = fit.get("blocks", {}).get(str(depth))
        if part:
            line = plots.exponential(part["gamma"], fit["delta"])
            color = plots.COLORS[index % len(plots.COLORS)]
            plots.curve(axes, part["widths"], line, "", color=color)
    if fit:
        axes.plot([], [], "--", color=plots.PAPER, label=f"fits with one rate, {fit['delta']:.2g}")
    axes.set_yscale("log")
    axes.set_xlabel("source width $n_{MHA} = n_{FC}$")
    axes.set_ylabel("error of the ticket")
    axes.set_title(
        "Tickets in random transformers\n"
        f"(mean of {seeds} sources; band: 10 to 90 % of the sources)",
        fontsize=11,
    )
    axes.set_ylim(bottom=1e-8)
    plots.legend_below(axes, columns=2)
    return figure


def bend(split: Sequence[Mapping[str, Any]]) -> Figure:
    """Plot the share of sources that do not reach all target values.

    The mean errors of these sources, and of the remaining sources, are plotted too.
    """
    figure, (left, right) = plots.two(7.6, 4.4)
    for name, label, color in (
        ("mean", "all sources", plots.PAPER),
        ("mean_beyond", "sources that miss a value", plots.COLORS[1]),
        ("mean_within", "sources that reach all values", plots.COLORS[0]),
    ):
        rows = [row for row in split if row[name]]
        x, y = ([row[column] for row in rows] for column in ("width", name))
        left.plot(x, y, "o-", markersize=4, color=color, label=label)
    left.set_yscale("log")
    left.set_xlabel("source width $n_K = n_V$")
    left.set_ylabel("mean error of the ticket")
    x, y = ([row[column] for row in split] for column in ("width", "beyond"))
    label = "sources that miss a value"
    right.plot(x, y, "o-", markersize=4, color=plots.COLORS[1], label=label)
    right.set_xlabel("source width $n_K = n_V$")
    right.set_ylabel("share of the sources")
    for axes in (left, right):
        plots.legend_below(axes)
    figure.suptitle("Why figure 4 bends: its trained target, by the reach of the source")
    return figure


def _panels(kinds: Sequence[str]) -> tuple[Figure, list[Axes]]:
    if len(kinds) > 1:
        figure, (left, right) = plots.two(7.6, 5.4, shared=True)
        panels = [left, right]
    else:
        figure, axes = plots.figure()
        panels = [axes]
    for axes, kind in zip(panels, kinds, strict=True):
        axes.set_title(TITLES[kind], fontsize=11)
    return figure, panels


def _means(axes, by, rows, kind, config, index, label) -> None:
    """Plot means with a band of quantiles.

    The quantiles are taken over targets if the targets are random, and over sources if the target
    is trained.
    """
    x = [row[by] for row in rows]
    if kind == "drawn":
        count = f"mean of {config.targets} targets x {config.seeds} sources"
        low, high, band = "targets_low", "targets_high", "10 to 90 % of the targets"
    else:
        count = f"mean of {config.seeds} sources"
        low, high, band = "low", "high", "10 to 90 % of the sources"
    label = f"{label}{count}\n(band: {band})"
    plots.error_curve(axes, x, rows, label, index, low=low, high=high)


def _guarantees(axes: Axes, rows: Rows) -> None:
    """Plot the guaranteed and the measured error of seed 0's ticket against the width."""
    x = [row["width"] for row in rows]
    for name, marker, label in (("bound", "v", "guaranteed"), ("error", "x", "measured")):
        y = [row[name] for row in rows]
        axes.plot(x, y, marker, color=plots.COLORS[4], markersize=5, label=f"source 0: {label}")
