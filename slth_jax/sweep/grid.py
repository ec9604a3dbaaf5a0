"""The plan of a sweep: which trials there are, which share a program, which share a chunk.

Plain Python and NumPy, and a function of the arguments alone: the same on every host, for every
number of devices and after every restart.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from slth_jax import checks

# Trials that one device computes at once. Accelerators want many; the lists of more than a few no
# longer fit into a CPU's cache (16 took three quarters of the time of 64 and of 256).
MAX_BATCH, MAX_BATCH_CPU = 64, 16
# Eight devices of MAX_BATCH trials: what is computed again at most after a kill.
MIN_CHUNK = 512
# Bounds the memory of a sweep of any length.
MAX_CHUNK = 4096


@dataclasses.dataclass(frozen=True)
class Group:
    """Trials that share one compiled program: equal static values, equal padded sizes."""

    static: dict[str, Any]
    padded: dict[str, int]
    trials: np.ndarray


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Trials whose results become durable together; `trials` are global trial numbers."""

    number: int
    group: int
    trials: np.ndarray


@dataclasses.dataclass(frozen=True)
class Plan:
    """All trials of a sweep: trial `i` is point `i // len(seeds)` with seed `i % len(seeds)`.

    Attributes:
      points: the grid's points, in order, as given.
      seeds: uint32.
      values: for each traced name, one value a point, in the dtype that the trial receives.
      static: names whose values are plain Python in the trial.
      padded: names of sizes that are padded.
      groups: in order of first appearance.
      chunks: in the order in which they are computed.
      batch: trials that one device computes at once. It does not depend on the number of devices,
        so each device runs the same program whatever their number, and no result bit changes.
      recipe: the arguments of `plan` that give this plan, in JSON's types.
    """

    points: list[dict[str, Any]]
    seeds: np.ndarray
    values: dict[str, np.ndarray]
    static: tuple[str, ...]
    padded: tuple[str, ...]
    groups: list[Group]
    chunks: list[Chunk]
    batch: int
    recipe: dict[str, Any]

    @property
    def size(self) -> int:
        """The number of trials."""
        return len(self.points) * len(self.seeds)

    def setting(self, trial: int) -> dict[str, Any]:
        """Return the grid's values and the seed of one trial."""
        point, seed = divmod(int(trial), len(self.seeds))
        return {**self.points[point], "seed": int(self.seeds[seed])}


def _seeds(seeds: int | Iterable[int]) -> np.ndarray:
    if isinstance(seeds, (int, np.integer)):
        return np.arange(checks.integer("seeds", seeds, low=1), dtype=np.uint32)
    listed = [checks.integer("seeds", seed, low=0, high=2**32 - 1) for seed in seeds]
    if not listed:
        raise checks.fail("seeds", "a count or at least one integer", "none")
    if len(set(listed)) < len(listed):
        raise checks.fail("seeds", "different from one another", listed[:20])
    return np.array(listed, np.uint32)


def _points(grid: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]]) -> list[dict]:
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
        points = [dict(point) for point in grid]
    if not points:
        raise checks.fail("grid", "at least one point", "none")
    for point in points:
        if point.keys() != points[0].keys():
            raise checks.fail("grid", f"points of the names {sorted(points[0])}", sorted(point))
    for name in points[0]:
        if not isinstance(name, str) or name == "seed":
            raise checks.fail("grid", "named by strings other than 'seed'", repr(name))
    return [{name: _scalar(name, value) for name, value in point.items()} for point in points]


def _scalar(name: str, value: Any) -> Any:
    """Return one grid value as plain Python, so that it can be compared and written as JSON."""
    if isinstance(value, (np.generic, np.ndarray, jax.Array)) and np.ndim(value) == 0:
        value = np.asarray(value).item()
    if isinstance(value, (list, tuple)):
        return tuple(_scalar(name, entry) for entry in value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    allowed = "made of numbers, booleans, strings, None or tuples of them"
    raise checks.fail(f"grid[{name!r}]", allowed, repr(value))


def _column(name: str, column: list[Any]) -> np.ndarray:
    """Return a traced name's values in the dtype that JAX gives them."""
    if all(isinstance(value, bool) for value in column):
        return np.array(column)
    whole = all(isinstance(value, int) and not isinstance(value, bool) for value in column)
    dtype = jax.dtypes.canonicalize_dtype(np.int64 if whole else np.float64)
    if whole and max(map(abs, column)) > np.iinfo(dtype).max:
        raise checks.fail(f"grid[{name!r}]", f"within {dtype}", max(column, key=abs))
    return np.array(column, dtype)


def _bucket_of(name: str, values: list[Any], buckets: Any) -> dict[int, int]:
    """Return the padded size of each true size.

    By default the next of 8, 32, 128, 512, ...: an absolute ladder, so that a trial is computed at
    the same size in every sweep. Doubling steps would waste less, but compiling one program more
    costs as much as hundreds of trials.
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
    """Return the least of 8, 32, 128, ... that is not below `size`."""
    rung = 8
    while rung < size:
        rung *= 4
    return rung


def _power_of_two(size: int) -> int:
    """Return the least power of two that is not below `size`."""
    return 1 << (size - 1).bit_length()


def plan(
    *,
    seeds: int | Iterable[int],
    grid: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]],
    static: Sequence[str] = (),
    padded: Sequence[str] = (),
    buckets: Any = None,
    chunk: int | None = None,
    batch: int | None = None,
) -> Plan:
    """Return the trials of a sweep, grouped by program and cut into chunks (see `sweep.run`)."""
    points, numbers = _points(grid), _seeds(seeds)
    columns = {name: [point[name] for point in points] for name in points[0]}
    for kind, names in (("static", static), ("padded", padded)):
        for name in names:
            checks.choice(kind, name, tuple(columns))
    for name in padded:
        if name in static or f"{name}_max" in columns:
            raise checks.fail("padded", f"neither static nor beside a {name}_max", repr(name))
    plain = (bool, int, float)
    words = [n for n, column in columns.items() if not all(isinstance(v, plain) for v in column)]
    fixed = tuple(name for name in columns if name in static or name in words)
    sizes = {name: _bucket_of(name, columns[name], buckets) for name in padded}
    values = {n: _column(n, column) for n, column in columns.items() if n not in fixed}
    values |= {name: np.array(columns[name], np.int32) for name in padded}

    members: dict[tuple, list[int]] = {}
    for index, point in enumerate(points):
        # The type too: 1, 1.0 and True are equal, but not the same program.
        statics = tuple((type(point[name]), point[name]) for name in fixed)
        key = (statics, tuple(sizes[name][point[name]] for name in padded))
        members.setdefault(key, []).append(index)
    offsets = np.arange(len(numbers), dtype=np.int64)
    groups = [
        Group(
            static={name: value for name, (_, value) in zip(fixed, statics, strict=True)},
            padded=dict(zip(padded, bucket, strict=True)),
            trials=(np.array(index)[:, None] * len(numbers) + offsets).ravel(),
        )
        for (statics, bucket), index in members.items()
    ]

    largest = max(len(group.trials) for group in groups)
    if chunk is None:
        chunk = min(largest, MAX_CHUNK, max(MIN_CHUNK, _power_of_two(-(-largest // 64))))
    chunk = checks.integer("chunk", chunk, low=1)
    if batch is None:
        most = MAX_BATCH_CPU if jax.default_backend() == "cpu" else MAX_BATCH
        batch = min(most, -(-chunk // 8))
    pieces = [
        (number, group.trials[start : start + chunk])
        for number, group in enumerate(groups)
        for start in range(0, len(group.trials), chunk)
    ]
    chunks = [Chunk(i, group, trials) for i, (group, trials) in enumerate(pieces)]
    batch = checks.integer("batch", batch, low=1, high=chunk)
    listed = numbers.tolist()
    recipe = {
        "seeds": len(listed) if listed == list(range(len(listed))) else listed,
        "grid": {name: [_scalar(name, v) for v in grid[name]] for name in grid}
        if isinstance(grid, Mapping)
        else points,
        "static": list(static),
        "padded": list(padded),
        "buckets": buckets,
        "chunk": chunk,
        "batch": batch,
    }
    return Plan(points, numbers, values, fixed, tuple(padded), groups, chunks, batch, recipe)
