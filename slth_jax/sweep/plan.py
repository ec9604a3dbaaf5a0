"""The plan of a sweep: all trials, and their division into programs and chunks.

A plan depends only on the arguments of the sweep, so it is the same on every host, for every number
of devices and after every restart.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Int64, Shaped, UInt32

from slth_jax import checks
from slth_jax.sweep.grid import buckets_of, column_of, points_of, scalar, seeds_of

# The number of trials that one device computes at once. Accelerators need many. On a CPU the lists
# of more than a few trials exceed the cache: batches of 16 took three quarters of the time that
# batches of 64 and of 256 took.
MAX_BATCH, MAX_BATCH_CPU = 64, 16
# The trials of eight devices with MAX_BATCH each. At most one chunk is computed again after a kill.
MIN_CHUNK = 512
# This bounds the memory of a sweep, whatever its length.
MAX_CHUNK = 4096


@dataclasses.dataclass(frozen=True)
class Group:
    """Trials with equal static values and equal padded sizes, which share one compiled program."""

    static: dict[str, Any]
    padded: dict[str, int]
    points: Int64[np.ndarray, " point"]  # the indices of the points; a program runs all seeds

    @property
    def words(self) -> str:
        """A text with the static values and the padded sizes of this group's program."""
        named = self.static | {f"{name}_max": size for name, size in self.padded.items()}
        return ", ".join(f"{name}={value}" for name, value in named.items())


@dataclasses.dataclass(frozen=True)
class Chunk:
    """A chunk: trials of one group whose results are saved together."""

    number: int
    group: int
    trials: Int64[np.ndarray, " trial"]


@dataclasses.dataclass(frozen=True)
class Plan:
    """All trials of a sweep: trial `i` is point `i // len(seeds)` with seed `i % len(seeds)`.

    Attributes:
      points: the points of the grid, in the given order.
      seeds: the seeds.
      values: a dict from the name of a traced value to an array with one entry per point, in the
        dtype that the trial receives.
      static: the names of the values that the trial receives as plain Python.
      padded: the names of the sizes that are padded.
      groups: the groups, in order of first appearance.
      chunks: the chunks, in the order in which they are computed.
      batch: the number of trials that one device computes at once. The batch does not depend on the
        number of devices, and every device runs the same program. Therefore no bit of a result
        depends on the number of devices.
      recipe: the arguments with which `make_plan` makes this plan again; JSON can store them.
    """

    points: list[dict[str, Any]]
    seeds: UInt32[np.ndarray, " seed"]
    values: dict[str, Shaped[np.ndarray, " point"]]
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
        """Return a dict with the grid's values and the seed of one trial."""
        point, seed = divmod(int(trial), len(self.seeds))
        return {**self.points[point], "seed": int(self.seeds[seed])}


def _power_of_two(size: int) -> int:
    """Return the smallest power of two that is at least `size`."""
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
    """Group the trials of a sweep by program, and cut each group into chunks (see `sweep.run`).

    If seeds are added to a sweep later, `portions` lists how many seeds each call added; None if
    all seeds were given at once. A chunk contains only seeds that were added by one call, so adding
    seeds does not change the chunks of a finished sweep.
    """
    points, numbers = points_of(grid), seeds_of(seeds)  # a list [point]; uint32 [seed]
    columns = {name: [point[name] for point in points] for name in points[0]}  # name: [point]
    for kind, names in (("static", static), ("padded", padded)):
        for name in checks.sequence(kind, names):
            checks.choice(kind, name, tuple(columns))
    for name in padded:
        if name in static or f"{name}_max" in columns:
            raise checks.fail("padded", f"neither static nor beside a {name}_max", repr(name))
    # Only numbers and booleans can be traced; a column with anything else is static as a whole.
    untraced = [n for n, column in columns.items() if not all(map(_is_number, column))]
    fixed = tuple(name for name in columns if name in static or name in untraced)
    sizes = {name: buckets_of(name, columns[name], buckets) for name in padded}  # size: padded size
    values = {n: column_of(n, column) for n, column in columns.items() if n not in fixed}
    values |= {name: np.array(columns[name], np.int32) for name in padded}  # name: array [point]
    groups = _groups(points, fixed, sizes)

    # The program with the most trials determines the size of all chunks.
    chunk, batch = _sizes(max(len(group.points) for group in groups) * len(numbers), chunk, batch)
    portions = [len(numbers)] if portions is None else list(portions)
    listed = numbers.tolist()
    recipe = {
        # Seeds 0 ... n - 1 are stored as n, so that a million seeds need no list.
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


def _is_number(value: Any) -> bool:
    return isinstance(value, (bool, int, float))


def _groups(
    points: list[dict[str, Any]], fixed: tuple[str, ...], sizes: Mapping[str, Mapping[int, int]]
) -> list[Group]:
    """Group the points by their values of the names in `fixed` and by their padded sizes."""
    members: dict[tuple, list[int]] = {}
    for index, point in enumerate(points):
        # The key includes the type, because 1, 1.0 and True are equal but need different programs.
        statics = tuple((type(point[name]), point[name]) for name in fixed)
        key = (statics, tuple(sizes[name][point[name]] for name in sizes))
        members.setdefault(key, []).append(index)
    return [
        Group(
            static={name: value for name, (_, value) in zip(fixed, statics, strict=True)},
            padded=dict(zip(sizes, padded, strict=True)),
            points=np.array(indices, np.int64),
        )
        for (statics, padded), indices in members.items()
    ]


def continued(
    seeds: UInt32[np.ndarray, " seed"], recipe: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return arguments of `make_plan` that continue the sweep in a folder.

    Args:
      seeds: the seeds of this call.
      recipe: the `Plan.recipe` that the folder contains; None if the folder has no finished chunk.

    Returns:
      A dict with `portions`, `chunk` and `batch`. `chunk` and `batch` are taken from the folder.
      `portions` lists how many seeds each earlier call added, and how many this call adds.
    """
    if recipe is None:
        return {"portions": None, "chunk": None, "batch": None}
    before = seeds_of(recipe["seeds"])
    more = len(seeds) - len(before)
    portions = None
    if more >= 0 and np.array_equal(seeds[: len(before)], before):
        portions = [*recipe["portions"], *([more] if more else [])]
    return {"portions": portions, "chunk": recipe["chunk"], "batch": recipe["batch"]}


def _sizes(largest: int, chunk: int | None, batch: int | None) -> tuple[int, int]:
    """Return the number of trials per chunk, and the number of trials per call on one device."""
    if chunk is None:
        chunk = min(largest, MAX_CHUNK, max(MIN_CHUNK, _power_of_two(-(-largest // 64))))
    chunk = checks.integer("chunk", chunk, low=1)
    if batch is None:
        most = MAX_BATCH_CPU if jax.default_backend() == "cpu" else MAX_BATCH
        batch = min(most, -(-chunk // 8))
    return chunk, checks.integer("batch", batch, low=1, high=chunk)


def _chunks(groups: list[Group], portions: Sequence[int], num_seeds: int, size: int) -> list[Chunk]:
    """Cut trials into chunks of at most `size`; a chunk has one group and one portion of seeds."""
    pieces: list[tuple[int, np.ndarray]] = []
    ends = np.cumsum(portions, dtype=np.int64)  # [portion]
    for begin, end in zip([0, *ends[:-1]], ends, strict=True):
        for number, group in enumerate(groups):
            offsets = np.arange(begin, end, dtype=np.int64)  # [seed of the portion]
            # [point, 1] + [1, seed] -> [point, seed] -> [trial]
            trials = (group.points[:, None] * num_seeds + offsets[None]).ravel()
            pieces += [(number, trials[at : at + size]) for at in range(0, len(trials), size)]
    return [Chunk(i, group, trials) for i, (group, trials) in enumerate(pieces)]
