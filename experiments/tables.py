"""Print the short table that is shown at the end of a run."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from slth_jax import storage

# Columns of summary.json that are not printed.
LEFT_OUT = (
    "std",
    "count",
    "vacuous",
    "accuracy_min",
    "targets_low",
    "targets_high",
    "mean_se",
    "mean_free",
)

MEANINGS = {
    "mean": "mean error over the trials of a row; of language models, mean validation loss",
    "median": "median over the trials",
    "low": "10th percentile over the trials",
    "high": "90th percentile over the trials",
    "out_of_reach": "values larger than the sum of all samples of their sign, in all trials",
    "bound": "guaranteed error of the first source's ticket, for all inputs",
    "bound_on": "guaranteed error of the first source's ticket, for the given inputs",
    "relative_on": "bound_on divided by the norm of a row; the bound is vacuous from 1 on",
    "certain": "share of answers that the bound proves unchanged",
    "violations": "measured errors above the bound for all inputs",
    "violations_on": "measured errors above the bound for the given input",
    "vacuous_on": "share of bounds for the given input that are at least the row's norm",
    "ratio": "median of bound / measured error, where the bound is for all inputs",
    "ratio_on": "median of bound / measured error, where the bound is for the given input",
    "entry_median": "median error of an entry of the merged matrices",
    "worst_share": "the worst 1 % of entries' share of the sum of all entry errors",
    "kept": "share of connections in the ticket",
    "units": "hidden units per input coordinate",
    "nonzero": "non-zero parameters",
    "log_gamma": "gamma of a straight line through the logarithms of means above rounding",
    "log_delta": "decay rate of a straight line through the logarithms of means above rounding",
    "free": "degrees of freedom of the standard errors",
    "gamma_se": "standard error of gamma",
    "delta_se": "standard error of delta",
    "log_delta_se": "standard error of log_delta",
    "single": "quantiles of the fits of single targets",
    "test_loss": "mean squared error of the trained target on its task",
    "answer_variance": "mean squared error of always answering the mean",
    "explained_variance": "share of the answers' variance that the trained target explains",
    "w_qk_norm": "largest spectral norm of a merged query-key matrix",
    "w_vo_norm": "largest spectral norm of a merged value-output matrix",
    "last_loss": "mean validation loss after the last step",
    "random_mask": "mean validation loss before the first step, with the masks of random scores",
    "shuffled_mask": "mean validation loss with the learned masks shuffled within their matrices",
}
"""Columns and facts whose names need an explanation."""


def show(
    name: str, summary: Mapping[str, Any], path: storage.Place, *, finished: bool = False
) -> None:
    """Print a summary's rows, its fits with the paper's numbers, and the path of the run's folder.

    If `finished`, the run was complete before this call, and its date is printed too.
    """
    rows = summary["rows"]
    console = Console()
    shown: list[str] = []
    if rows:
        columns = [name for name in columns_of(rows) if name not in LEFT_OUT]
        table = Table(title=title(name, rows), title_justify="left")
        for column in columns:
            table.add_column(column, justify="right", overflow="fold")
        for row in rows:
            table.add_row(*(text(row.get(column, "")) for column in columns))
        # Names and numbers are never cut: in a file lines are as long as needed, in a terminal
        # cells are folded.
        full = Console(width=1000).measure(table).maximum
        console = Console(width=None if sys.stdout.isatty() else max(full, 100))
        console.print(table)
        shown += columns
    for part in ("fit", "fit_drawn", "paper", "target"):
        if summary.get(part):
            for line in lines(part, summary[part]):
                console.print(line, highlight=False, soft_wrap=True)
                shown += [word.strip(",:") for word in line.split()]
    for line in legend(shown):
        console.print(f"  {line}", highlight=False, soft_wrap=True)
    took = f"{summary['seconds']:.1f} s on {summary['device']}"
    if finished:
        took = f"finished before, on {summary['date']} ({took}): nothing to do"
    console.print(f"{took}; files in", highlight=False, soft_wrap=True)
    print(path)


def columns_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of all columns in order of first occurrence; a row may lack a column."""
    return list(dict.fromkeys(name for row in rows for name in row))


def title(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the experiment's name and the number of trials per row."""
    counts = sorted({row["count"] for row in rows if "count" in row})
    trials = " or ".join(f"{count:,}" for count in counts)
    return f"{name}: each row summarises {trials} trials" if counts else name


def legend(names: Sequence[str]) -> list[str]:
    """Return a line ``name: meaning`` for each name that needs an explanation."""
    return [f"{name}: {MEANINGS[name]}" for name in dict.fromkeys(names) if name in MEANINGS]


def lines(name: str, value: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line ``name: entries``, then further lines for each entry that is a mapping."""
    nested = {key: entry for key, entry in value.items() if isinstance(entry, Mapping)}
    plain = {key: entry for key, entry in value.items() if key not in nested}
    if plain:
        yield f"{name}: {text(plain)}"
    for key, entry in nested.items():
        yield from lines(f"{name} {key}", entry)


def text(value: Any) -> str:
    """Return a value as text: numbers with four digits, mappings as ``name value`` pairs."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {text(entry)}" for name, entry in value.items())
    if isinstance(value, (list, tuple)):
        return "(" + ", ".join(text(entry) for entry in value) + ")"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
