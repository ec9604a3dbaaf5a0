"""Read committed results; format numbers, tables and paragraphs for generated blocks of pages."""

import functools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


@functools.cache
def read(name: str) -> Any:
    """Return the content of a committed JSON file of results.

    Args:
      name: the name, without '.json', of a file in `figures/` or `benchmarks/results/`.

    Raises:
      FileNotFoundError: neither of the two folders contains the file.
    """
    return json.loads(place(name).read_text())


def place(name: str) -> Path:
    """Return the path of the committed JSON file that has the name `name`, without '.json'."""
    for folder in ("figures", "benchmarks/results"):
        path = ROOT / "experiments" / folder / f"{name}.json"
        if path.exists():
            return path
    raise FileNotFoundError(name)


def table(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a Markdown table."""
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def wrapped(text: str, width: int = 104) -> str:
    """Return a paragraph broken into lines of at most `width` characters."""
    lines, line = [], ""
    for word in text.split():
        if line and len(line) + 1 + len(word) > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    return "\n".join([*lines, line])


def g(value: float, digits: int = 2) -> str:
    """Return a number rounded to `digits` significant digits."""
    text = f"{value:.{digits}g}"
    if 100 <= abs(value) < 1e7:
        return f"{float(text):,.0f}"
    mantissa, e, exponent = text.partition("e")
    return f"{mantissa}e{int(exponent)}" if e else text


def pm(value: float, se: float, digits: int = 2) -> str:
    """Return ``value ± se`` with fixed decimals."""
    return f"{value:.{digits}f} ± {se:.{digits}f}"


def interval(low: float, high: float, digits: int = 2) -> str:
    """Return ``[low, high]`` with fixed decimals."""
    return f"[{low:.{digits}f}, {high:.{digits}f}]"


def pick(rows: Iterable[dict[str, Any]], **values: Any) -> dict[str, Any]:
    """Return the only row that has the given values.

    Raises:
      ValueError: no row, or more than one row, has these values.
    """
    chosen = [row for row in rows if all(row.get(name) == v for name, v in values.items())]
    if len(chosen) != 1:
        raise ValueError(f"{len(chosen)} rows with {values}")
    return chosen[0]
