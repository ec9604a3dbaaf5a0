"""The plan of a sweep: which trials there are, which share a program, which share a chunk.

Plain Python and NumPy, and a function of the arguments alone: the same on every host, for every
number of devices and after every restart.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from slth_jax import checks
from slth_jax.sweep.grid import buckets_of, column_of, points_of, scalar, seeds_of

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
    points: np.ndarray  # their numbers; a program runs every seed at each

    @property
    def words(self) -> str:
        """What sets this program apart from the sweep's others."""
        named = self.static | {f"{name}_max": size for name, size in self.padded.items()}
        return ", ".join(f"{name}={value}" for name, value in named.items())


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
      recipe: the arguments of `make_plan` that give this plan, in JSON's types.
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


def _power_of_two(size: int) -> int:
    """Return the least power of two that is not below `size`."""
    return 1 << (size - 1).bit_length()


def make_plan(
    *,
    seeds: int | np.integer | Iterable[int | np.integer],
    grid: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]],
    static: Sequence[str] = (),
    padded: Sequence[str] = (),
    buckets: Any = None,
    chunk: int | None = None,
    batch: int | None = None,
    portions: Sequence[int] | None = None,
) -> Plan:
    """Return the trials of a sweep, grouped by program and cut into chunks (see `sweep.run`).

    Chunks are cut from one portion of the seeds after another, so that seeds added to a finished
    sweep leave its chunks as they were: `portions` says how many came at a time, None for all.
    """
    points, numbers = points_of(grid), seeds_of(seeds)
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
    sizes = {name: buckets_of(name, columns[name], buckets) for name in padded}
    values = {n: column_of(n, column) for n, column in columns.items() if n not in fixed}
    values |= {name: np.array(columns[name], np.int32) for name in padded}

    members: dict[tuple, list[int]] = {}
    for index, point in enumerate(points):
        # The type too: 1, 1.0 and True are equal, but not the same program.
        statics = tuple((type(point[name]), point[name]) for name in fixed)
        key = (statics, tuple(sizes[name][point[name]] for name in padded))
        members.setdefault(key, []).append(index)
    groups = [
        Group(
            static={name: value for name, (_, value) in zip(fixed, statics, strict=True)},
            padded=dict(zip(padded, bucket, strict=True)),
            points=np.array(index),
        )
        for (statics, bucket), index in members.items()
    ]

    chunk, batch = _sizes(max(len(group.points) for group in groups) * len(numbers), chunk, batch)
    portions = [len(numbers)] if portions is None else list(portions)
    listed = numbers.tolist()
    recipe = {
        "seeds": len(listed) if listed == list(range(len(listed))) else listed,
        "portions": portions,
        "grid": {name: [scalar(name, v) for v in grid[name]] for name in grid}
        if isinstance(grid, Mapping)
        else points,
        "static": list(static),
        "padded": list(padded),
        "buckets": buckets,
        "chunk": chunk,
        "batch": batch,
    }
    chunks = _chunks(groups, portions, len(numbers), chunk)
    return Plan(points, numbers, values, fixed, tuple(padded), groups, chunks, batch, recipe)


def continued(seeds: np.ndarray, held: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the arguments of `make_plan` by which a sweep goes on that a folder holds.

    Args:
      seeds: those that are wanted now.
      held: the `Plan.recipe` in the folder, or None.

    Returns:
      `portions`: those in the folder, and the seeds that follow them as one more. `chunk` and
      `batch`: as in the folder, unless the caller says otherwise.
    """
    if held is None:
        return {"portions": None, "chunk": None, "batch": None}
    before = seeds_of(held["seeds"])
    more = len(seeds) - len(before)
    portions = None
    if more >= 0 and np.array_equal(seeds[: len(before)], before):
        portions = [*held["portions"], *([more] if more else [])]
    return {"portions": portions, "chunk": held["chunk"], "batch": held["batch"]}


def _sizes(largest: int, chunk: int | None, batch: int | None) -> tuple[int, int]:
    """Return how many trials a chunk has, and how many a device computes at once."""
    if chunk is None:
        chunk = min(largest, MAX_CHUNK, max(MIN_CHUNK, _power_of_two(-(-largest // 64))))
    chunk = checks.integer("chunk", chunk, low=1)
    if batch is None:
        most = MAX_BATCH_CPU if jax.default_backend() == "cpu" else MAX_BATCH
        batch = min(most, -(-chunk // 8))
    return chunk, checks.integer("batch", batch, low=1, high=chunk)


def _chunks(groups: list[Group], portions: Sequence[int], num_seeds: int, size: int) -> list[Chunk]:
    """Cut the trials of each portion of the seeds and each group into chunks of at most `size`."""
    pieces: list[tuple[int, np.ndarray]] = []
    ends = np.cumsum(portions, dtype=np.int64)
    for begin, end in zip([0, *ends[:-1]], ends, strict=True):
        for number, group in enumerate(groups):
            offsets = np.arange(begin, end, dtype=np.int64)
            trials = (group.points[:, None] * num_seeds + offsets[None]).ravel()
            pieces += [(number, trials[at : at + size]) for at in range(0, len(trials), size)]
    return [Chunk(i, group, trials) for i, (group, trials) in enumerate(pieces)]
