"""Tables that map this library's names of arrays to the names in a state dict, and back."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from slth_jax import checks
from slth_jax.models.settings import Settings, make_settings, matrix_shapes, vector_shapes

# The names of activations that `transformers` reads.
WRITTEN_ACTIVATIONS = {"relu": "relu", "gelu": "gelu_new", "gelu_exact": "gelu", "silu": "silu"}
_SIZES = (
    "vocab_size", "width", "num_blocks", "num_heads", "hidden_width", "max_length", "norm_eps",
    "activation",
)  # fmt: skip


def check_kind(settings: Settings, kind: str, expected: Mapping[str, Any]) -> None:
    """Raise an error that names the first setting that differs from `expected`."""
    for name, value in expected.items():
        if getattr(settings, name) != value:
            raise checks.fail(name, f"{value!r} in a {kind}", repr(getattr(settings, name)))


def plain_fields(settings: Settings, **options: Any) -> dict[str, Any]:
    """Return the fields of `Settings` that follow from the sizes in `settings` and `options`."""
    sizes = {name: getattr(settings, name) for name in _SIZES}
    fields = dict(vars(make_settings(**sizes, **options)))
    del fields["factor"]  # only masked sources have this field, and no configuration does
    return fields


Read = Callable[[str], np.ndarray]
Shapes = Mapping[str, tuple[int, ...]]


class Row(NamedTuple):
    """An array's name in this library and its name in the state dict."""

    ours: str
    theirs: str
    transposed: bool = False
    third: int | None = None  # 0, 1, 2 if the state dict stores query, key, value as one array
    divided: bool = False  # whether to divide the stored array by (block index + 1)
    skipped: int = 0  # the first rows of the state dict's array that our array lacks


class Layout(NamedTuple):
    """A table of array names; in a block's names ``{b}`` stands for the block's number."""

    ends: tuple[Row, ...]
    block: tuple[Row, ...]

    def rows_of(self, index: int) -> list[Row]:
        """Return the table's rows for block `index`, with its number in place of ``{b}``."""
        return [row._replace(theirs=row.theirs.format(b=index)) for row in self.block]

    def stacked(self, num_blocks: int) -> list[tuple[str, int | None, Row]]:
        """Return a triple for each array: this library's name, block or None, row of the table."""
        rows: list[tuple[str, int | None, Row]] = [(row.ours, None, row) for row in self.ends]
        for index in range(num_blocks):
            rows += [(f"h.{row.ours}", index, row) for row in self.rows_of(index)]
        return rows

    def count_blocks(self, names: Iterable[str]) -> int:
        """Return the number of consecutive blocks, from block 0, with an array in `names`."""
        names, first, count = set(names), self.block[0].theirs, 0
        while first.format(b=count) in names:
            count += 1
        return count

    def without_absent(self, names: Iterable[str], num_blocks: int) -> "Layout":
        """Return the layout without biases that no block has in `names`; these biases are zero."""
        names = set(names)

        def kept(row: Row, count: int) -> bool:
            theirs = (row.theirs.format(b=index) for index in range(count))
            return not row.ours.endswith(".bias") or any(name in names for name in theirs)

        ends = tuple(row for row in self.ends if kept(row, 1))
        return Layout(ends, tuple(row for row in self.block if kept(row, num_blocks)))

    def their_shapes(self, settings: Settings) -> dict[str, tuple[int, ...]]:
        """Return a dict from each array's name in the state dict to its shape."""
        ours = {**matrix_shapes(settings), **vector_shapes(settings)}
        result: dict[str, tuple[int, ...]] = {}
        for name, index, row in self.stacked(settings.num_blocks):
            shape = ours[name] if index is None else ours[name][1:]
            if row.transposed:
                shape = shape[::-1]
            if row.skipped:
                shape = (row.skipped + shape[0], *shape[1:])
            if row.third is not None:
                before = result.get(row.theirs, (*shape[:-1], 0))[-1]
                shape = (*shape[:-1], before + shape[-1])
            result[row.theirs] = shape
        return result


def read(rows: Iterable[Row], source: Read, *, block: int = 0) -> dict[str, np.ndarray]:
    """Read the arrays in `rows` with ``source(name)``, joined query-key-value arrays only once."""
    result, joined = {}, {}
    for row in rows:
        if row.third is None:
            value = source(row.theirs)
        else:
            if row.theirs not in joined:
                joined[row.theirs] = np.split(source(row.theirs), 3, axis=-1)
            value = joined[row.theirs][row.third]
        value = value.T if row.transposed else value[row.skipped :]
        result[row.ours] = value / np.float32(block + 1) if row.divided else value
    return result


def write(layout: Layout, params: Mapping[str, Any], num_blocks: int) -> dict[str, np.ndarray]:
    """Return the state dict for parameters that are stacked and named as in this library."""
    parts: dict[str, list[np.ndarray]] = {}
    for name, index, row in layout.stacked(num_blocks):
        value = np.asarray(params[name]) if index is None else np.asarray(params[name])[index]
        if row.skipped:
            value = np.concatenate([np.zeros((row.skipped, *value.shape[1:]), value.dtype), value])
        parts.setdefault(row.theirs, []).append(value.T if row.transposed else value)
    return {
        name: np.ascontiguousarray(value[0] if len(value) == 1 else np.concatenate(value, axis=-1))
        for name, value in parts.items()
    }


def check_sizes(shapes: Shapes, layout: Layout, sizes: Mapping[str, tuple[str, int, int]]) -> None:
    """Compare the sizes in a configuration with the arrays, before memory is allocated.

    Args:
      shapes: a dict from the name of each array in the state dict to its shape.
      layout: the table of array names.
      sizes: a dict from the name of a size in the configuration to a triple: this library's name of
        an array, the axis of the array (as this library stores it), and the size.

    Raises:
      ValueError: a size differs from the arrays.
    """
    rows = {row.ours: row for row in (*layout.ends, *layout.rows_of(0))}
    for name, (ours, axis, size) in sizes.items():
        row = rows[ours]
        shape = shapes.get(row.theirs)
        if shape is None:
            raise checks.fail("weights", "complete", f"weights without {row.theirs!r}")
        if len(shape) != 2:
            raise checks.fail(f"weights[{row.theirs!r}]", "a matrix", f"shape {shape}")
        length = shape[::-1][axis] if row.transposed else shape[axis]
        if row.third is not None:
            length //= 3
        if length != size:
            raise checks.fail(name, f"{length}, as in the weights", size)


def check(name: str, have: Shapes, expected: Shapes, *, what: str) -> None:
    """Raise an error if the names or shapes `have` of a state dict differ from `expected`.

    Biases may be absent; an absent bias counts as zero.

    Raises:
      ValueError: a name is missing or unknown, or a shape is wrong; the error message names the
        first such array.
    """
    for theirs in sorted(expected.keys() ^ have.keys()):
        if theirs not in have and theirs.endswith(".bias"):
            continue
        problem = "lacks" if theirs in expected else "also has"
        raise checks.fail(name, what, f"one that {problem} {theirs!r}")
    for theirs, shape in have.items():
        if tuple(shape) != expected[theirs]:
            raise checks.fail(f"{name}[{theirs!r}]", f"of shape {expected[theirs]}", f"{shape}")
