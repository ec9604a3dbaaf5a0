"""Tables between our names and those of a state dict, read in both directions."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from slth_jax import checks
from slth_jax.models.settings import Settings, matrix_shapes, vector_shapes

Read = Callable[[str], np.ndarray]
Shapes = Mapping[str, tuple[int, ...]]


class Row(NamedTuple):
    """One of our arrays and where it stands."""

    ours: str
    theirs: str
    transposed: bool = False
    third: int | None = None  # theirs holds query, key and value side by side


class Layout(NamedTuple):
    """The rows outside the blocks, and of a block with ``{b}`` in their names."""

    ends: tuple[Row, ...]
    block: tuple[Row, ...]

    def rows_of(self, index: int) -> list[Row]:
        """Return the rows of one block with its number filled in."""
        return [row._replace(theirs=row.theirs.format(b=index)) for row in self.block]

    def stacked(self, num_blocks: int) -> list[tuple[str, int | None, Row]]:
        """Return (our stacked name, block or None, row) of every array."""
        ends: list[tuple[str, int | None, Row]] = [(row.ours, None, row) for row in self.ends]
        for index in range(num_blocks):
            ends += [(f"h.{row.ours}", index, row) for row in self.rows_of(index)]
        return ends

    def their_shapes(self, settings: Settings) -> dict[str, tuple[int, ...]]:
        """Return the shapes of a whole state dict under their names."""
        ours = {**matrix_shapes(settings), **vector_shapes(settings)}
        result: dict[str, tuple[int, ...]] = {}
        for name, index, row in self.stacked(settings.num_blocks):
            shape = ours[name] if index is None else ours[name][1:]
            if row.transposed:
                shape = shape[::-1]
            if row.third is not None:
                before = result.get(row.theirs, (*shape[:-1], 0))[-1]
                shape = (*shape[:-1], before + shape[-1])
            result[row.theirs] = shape
        return result


def read(rows: Iterable[Row], source: Read) -> dict[str, np.ndarray]:
    """Return our arrays, from `source(their name)`; a joined one is read once."""
    result, joined = {}, {}
    for row in rows:
        if row.third is None:
            value = source(row.theirs)
        else:
            if row.theirs not in joined:
                joined[row.theirs] = np.split(source(row.theirs), 3, axis=-1)
            value = joined[row.theirs][row.third]
        result[row.ours] = value.T if row.transposed else value
    return result


def write(layout: Layout, params: Mapping[str, Any], num_blocks: int) -> dict[str, np.ndarray]:
    """Return the state dict of our stacked parameters under their names."""
    parts: dict[str, list[np.ndarray]] = {}
    for name, index, row in layout.stacked(num_blocks):
        value = np.asarray(params[name]) if index is None else np.asarray(params[name])[index]
        parts.setdefault(row.theirs, []).append(value.T if row.transposed else value)
    return {
        name: np.ascontiguousarray(value[0] if len(value) == 1 else np.concatenate(value, axis=-1))
        for name, value in parts.items()
    }


def check(name: str, have: Shapes, wanted: Shapes, *, what: str) -> None:
    """Refuse a state dict with other names or shapes than `wanted`; one line.

    Raises:
      ValueError: the first name that is missing or too much, or the first other shape.
    """
    for theirs in sorted(wanted.keys() ^ have.keys()):
        problem = "lacks" if theirs in wanted else "also has"
        raise checks.fail(name, what, f"one that {problem} {theirs!r}")
    for theirs, shape in wanted.items():
        if tuple(have[theirs]) != shape:
            raise checks.fail(f"{name}[{theirs!r}]", f"of shape {shape}", f"shape {have[theirs]}")
