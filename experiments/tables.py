"""The short table that a run prints at its end."""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

# In summary.json, but not on the screen.
LEFT_OUT = ("std", "count", "vacuous", "accuracy_min")


def show(name: str, summary: Mapping[str, Any], path: Path, *, finished: bool = False) -> None:
    """Print a summary's rows, its fits beside the paper's numbers, and where the files are.

    Of a run that was `finished` before, it says when and that nothing was computed now.
    """
    console = Console(width=None if sys.stdout.isatty() else 100)
    rows = summary["rows"]
    if rows:
        # All rows', in order: some methods have columns that others lack.
        names = dict.fromkeys(name for row in rows for name in row)
        columns = [column for column in names if column not in LEFT_OUT]
        table = Table(title=name)
        for column in columns:
            table.add_column(column, justify="right")
        for row in rows:
            table.add_row(*(text(row.get(column, "")) for column in columns))
        console.print(table)
    for part in ("fit", "paper", "target"):
        if summary.get(part):
            for line in lines(part, summary[part]):
                console.print(line, highlight=False)
    took = f"{summary['seconds']:.1f} s on {summary['device']}"
    if finished:
        took = f"finished before, on {summary['date']} ({took}): nothing to do"
    console.print(f"{took}; files in", highlight=False, soft_wrap=True)
    print(path)


def lines(name: str, value: Mapping[str, Any]) -> Iterator[str]:
    """Yield ``name: its plain entries``, then a line for each entry that is a mapping itself."""
    nested = {key: entry for key, entry in value.items() if isinstance(entry, Mapping)}
    plain = {key: entry for key, entry in value.items() if key not in nested}
    if plain:
        yield f"{name}: {text(plain)}"
    for key, entry in nested.items():
        yield from lines(f"{name} {key}", entry)


def text(value: Any) -> str:
    """Return a number in four digits, a mapping as ``name value`` pairs, all else as it is."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {text(entry)}" for name, entry in value.items())
    if isinstance(value, (list, tuple)):
        return "(" + ", ".join(text(entry) for entry in value) + ")"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
