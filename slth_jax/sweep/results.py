"""The results of a sweep: a table with one row per trial, and arrays that are read on demand."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from slth_jax import checks, storage
from slth_jax.sweep.draws import draws
from slth_jax.sweep.plan import Plan
from slth_jax.sweep.program import Record, unpack


def _column(values: list[Any]) -> np.ndarray:
    """Return values as an array; its dtype is object if types differ or values are tuples."""
    if len({type(value) for value in values}) == 1 and not isinstance(values[0], tuple):
        return np.array(values)
    column = np.empty(len(values), object)
    column[:] = values
    return column


class Results:
    """The finished trials of a sweep, ordered by point of the grid and then by seed.

    Attributes:
      trials: integers `[row]`: for each row of the table, the trial's number in the sweep.
      metrics: a dict from the name of a metric to its values `[row, ...]`.
      missing: the number of trials that are not in the table, because they belong to another shard
        or are not computed yet.
      computed: the number of trials that the call of `run` computed; all other trials in the table
        were read from the folder.
      draws: the checksum of the sweep's random numbers (see `draws.draws`); None if a version of
        this library that did not store it ran the sweep.
      compile_seconds, run_seconds: the time that the call of `run` spent on compiling, and the time
        it spent on computing and saving.
    """

    def __init__(
        self,
        plan: Plan,
        records: dict[int, dict[str, np.ndarray]],
        read: Callable[[int], Record],
        specs: Sequence[Mapping[str, Any]],
        *,
        drawn: str | None = None,
        computed: int = 0,
        compile_seconds: float = 0.0,
        run_seconds: float = 0.0,
    ):
        """Join the metrics of all chunks; ``read(chunk)`` returns a chunk's metrics and arrays."""
        numbers = sorted(records)
        trials = [plan.chunks[number].trials for number in numbers]
        self._plan, self._read, self._specs = plan, read, specs
        flat = np.concatenate(trials) if trials else np.zeros(0, np.int64)
        order = np.argsort(flat)
        self.trials = flat[order]
        # For each row of the table: the chunk that contains its arrays, and the index in the chunk.
        self._chunk = np.repeat(numbers, [len(part) for part in trials])[order].astype(int)
        self._place = np.concatenate([np.arange(len(p)) for p in trials] or [flat])[order]
        names = list(records[numbers[0]]) if numbers else []
        self.metrics = {
            name: np.concatenate([records[number][name] for number in numbers])[order]
            for name in names
        }
        self.missing = plan.size - len(flat)
        self.computed = computed
        self.compile_seconds, self.run_seconds = compile_seconds, run_seconds
        self.draws = drawn
        self._last: tuple[int, Record] | None = None

    def __len__(self) -> int:
        """Return the number of rows of the table."""
        return len(self.trials)

    def __repr__(self) -> str:
        settings = ", ".join([*self._plan.points[0], "seed"])
        bad = f", {len(self.nonfinite)} not finite" if self.nonfinite else ""
        metrics = ", ".join(self.metrics) or "nothing yet"
        return f"Results({len(self)} of {self._plan.size} trials: {settings} -> {metrics}{bad})"

    @property
    def finished(self) -> bool:
        """Whether the table contains every trial of the sweep."""
        return self.missing == 0

    def check_draws(self) -> None:
        """Raise an error if this process draws other random numbers than the sweep.

        Raises:
          CheckpointError: the random numbers differ, because the release or the settings of JAX
            differ.
        """
        if self.draws is not None and self.draws != draws():
            raise storage.CheckpointError(
                "this process draws other random numbers than the sweep did: another release of "
                "JAX, or other settings such as jax_threefry_partitionable"
            )

    def row(self, index: int) -> dict[str, Any]:
        """Return one row as a dict: the grid's values, the seed and the metrics."""
        metrics = {name: values[index].tolist() for name, values in self.metrics.items()}
        return {**self._plan.setting(int(self.trials[index])), **metrics}

    @property
    def rows(self) -> list[dict[str, Any]]:
        """All rows of the table as dicts (see `row`)."""
        return [self.row(index) for index in range(len(self))]

    def table(self) -> dict[str, np.ndarray]:
        """Return a dict of one-dimensional columns, which `pandas.DataFrame` accepts.

        A metric that is an array becomes one column per entry: 'loss[0]', 'loss[1]', 'cm[0,1]'.
        """
        point, seed = np.divmod(self.trials, len(self._plan.seeds))
        columns = {
            name: _column([point[name] for point in self._plan.points])[point]
            for name in self._plan.points[0]
        }
        columns["seed"] = self._plan.seeds[seed]
        for name, metric in self.metrics.items():
            if metric.ndim == 1:
                columns[name] = metric
            for entry in np.ndindex(metric.shape[1:]) if metric.ndim > 1 else ():
                columns[f"{name}[{','.join(map(str, entry))}]"] = metric[(slice(None), *entry)]
        return columns

    @property
    def nonfinite(self) -> list[int]:
        """The indices of the rows in which a metric is NaN or infinite."""
        bad = np.zeros(len(self), bool)
        for metric in self.metrics.values():
            if jnp.issubdtype(metric.dtype, jnp.inexact):  # includes bfloat16 and float8
                wide = metric if metric.dtype.kind in "fc" else metric.astype(np.float32)
                bad |= ~np.isfinite(wide.reshape(len(self), -1)).all(axis=1)
        return np.flatnonzero(bad).tolist()

    def arrays(self, index: int) -> Any:
        """Return the arrays of the trial in one row; masks are booleans.

        The result is a nested dictionary with the names of the trial's tree: the fields of a
        NamedTuple, the keys of a dictionary, the indices ('0', '1') of a list. If the trial
        returned a single array, this array is returned without a dictionary. If the sweep has a
        folder, the arrays are read from the folder, and the chunk that was read last stays in
        memory.
        """
        index = checks.integer("index", index, low=0, high=len(self) - 1)
        number = int(self._chunk[index])
        if self._last is None or self._last[0] != number:
            self._last = (number, self._read(number))
        place = self._place[index]
        arrays = {name: stored[place] for name, stored in self._last[1]["arrays"].items()}
        return storage.nested(
            unpack(arrays, self._specs[self._plan.chunks[number].group]["arrays"])
        )
