"""Convert the arguments of a sweep that list seeds, points of the grid, or padded sizes."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Shaped, UInt32

from slth_jax import checks


def seeds_of(seeds: int | np.integer | Iterable[int | np.integer]) -> UInt32[np.ndarray, " seed"]:
    """Return the seeds as an array; a number n means the seeds 0 ... n - 1."""
    if isinstance(seeds, (int, np.integer)):
        return np.arange(checks.integer("seeds", seeds, low=1), dtype=np.uint32)
    checks.record("seeds", seeds, Iterable)
    listed = [checks.integer("seeds", seed, low=0, high=2**32 - 1) for seed in seeds]
    if not listed:
        raise checks.fail("seeds", "a count or at least one integer", "none")
    if len(set(listed)) < len(listed):
        raise checks.fail("seeds", "different from one another", listed[:20])
    return np.array(listed, np.uint32)


def points_of(grid: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]]) -> list[dict]:
    """Return the points of a grid in order: the listed points, or all combinations of values."""
    if isinstance(grid, Mapping):
        for name, values in grid.items():
            if isinstance(values, (str, Mapping)) or not isinstance(values, (Iterable)):
                raise checks.fail(f"grid[{name!r}]", "a sequence of values", repr(values))
        columns = {name: list(values) for name, values in grid.items()}
        points = [
            dict(zip(columns, combination, strict=True))
            for combination in itertools.product(*columns.values())
        ]
    else:
        points = [dict(point) for point in checks.sequence("grid", grid, Mapping)]
    if not points:
        raise checks.fail("grid", "at least one point", "none")
    for point in points:
        if point.keys() != points[0].keys():
            raise checks.fail("grid", f"points of the names {sorted(points[0])}", sorted(point))
    for name in points[0]:
        if not isinstance(name, str) or name == "seed":
            raise checks.fail("grid", "named by strings other than 'seed'", repr(name))
    return [{name: scalar(name, value) for name, value in point.items()} for point in points]


def scalar(name: str, value: Any) -> Any:
    """Convert one value of the grid to plain Python, which can be compared and stored as JSON."""
    if isinstance(value, (np.generic, np.ndarray, jax.Array)) and np.ndim(value) == 0:
        value = np.asarray(value).item()
    if isinstance(value, (list, tuple)):
        return tuple(scalar(name, entry) for entry in value)
    if isinstance(value, float) and not math.isfinite(value):
        # JSON lacks such numbers, so a loaded sweep would contain other values than its trials
        # received.
        raise checks.fail(f"grid[{name!r}]", "made of finite numbers", value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    allowed = "made of numbers, booleans, strings, None or tuples of them"
    raise checks.fail(f"grid[{name!r}]", allowed, repr(value))


def column_of(name: str, column: list[Any]) -> Shaped[np.ndarray, " point"]:
    """Return an array of the values of a traced parameter, in the dtype that JAX gives them."""
    if all(isinstance(value, bool) for value in column):
        return np.array(column)
    whole = all(isinstance(value, int) and not isinstance(value, bool) for value in column)
    dtype = jax.dtypes.canonicalize_dtype(np.int64 if whole else np.float64)
    largest = int(np.iinfo(dtype).max) if whole else float(np.finfo(dtype).max)
    for value in column:
        if abs(value) > largest or (value != 0 and dtype.type(value) == 0):
            raise checks.fail(f"grid[{name!r}]", f"within {dtype}", value)
    return np.array(column, dtype)


def buckets_of(name: str, values: list[Any], buckets: Any) -> dict[int, int]:
    """Return a dict from each size in `values` to its padded size.

    By default the padded size is the smallest of 8, 32, 128, 512, ... that is large enough. The
    numbers 8, 32, 128, ... are fixed, so that a trial has the same padded size in every sweep.
    Powers of two would waste less time per trial, but compiling one more program takes as long as
    hundreds of trials.
    """
    sizes = sorted({checks.integer(f"grid[{name!r}]", value, low=1) for value in values})
    if isinstance(buckets, Mapping):
        buckets = buckets.get(name)
    if buckets is None:
        return {size: _rung(size) for size in sizes}
    if isinstance(buckets, str):
        checks.choice("buckets", buckets, ("largest",))
        return dict.fromkeys(sizes, sizes[-1])
    edges = sorted(checks.integer("buckets", edge, low=1) for edge in buckets)
    if not edges or edges[-1] < sizes[-1]:
        raise checks.fail("buckets", f"up to at least {sizes[-1]}, the largest {name}", edges)
    return {size: next(edge for edge in edges if edge >= size) for size in sizes}


def _rung(size: int) -> int:
    """Return the smallest of 8, 32, 128, ... that is at least `size`."""
    rung = 8
    while rung < size:
        rung *= 4
    return rung
