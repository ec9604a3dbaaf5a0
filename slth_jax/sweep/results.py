"""The results of a sweep: one table, a row a trial, and the arrays on demand."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from slth_jax import checks, storage
from slth_jax.sweep.plan import Plan
from slth_jax.sweep.program import Record, unpack


def _column(values: list[Any]) -> np.ndarray:
    """Return values as one array: of their own type where they share one, else of objects."""
    if len({type(value) for value in values}) == 1 and not isinstance(values[0], tuple):
        return np.array(values)
    column = np.empty(len(values), object)
    column[:] = values
    return column


class Results:
    """The measured trials of a sweep, in the order of the grid and then of the seeds.

    Attributes:
      trials: the number of each row's trial in the sweep.
      metrics: for each metric an array whose first axis is the row.
      missing: how many trials of the sweep are not here (another shard's, or not computed yet).
      computed: how many trials this call computed; the others were there before.
      compile_seconds, run_seconds: time spent compiling, and computing and saving, by this call.
    """

    def __init__(
        self,
        plan: Plan,
        records: dict[int, dict[str, np.ndarray]],
        read: Callable[[int], Record],
        specs: Sequence[Mapping[str, Any]],
        *,
        computed: int = 0,
        compile_seconds: float = 0.0,
        run_seconds: float = 0.0,
    ):
        """Join the metrics of some chunks; `read` returns a chunk's record with its arrays."""
        numbers = sorted(records)
        trials = [plan.chunks[number].trials for number in numbers]
        self._plan, self._read, self._specs = plan, read, specs
        flat = np.concatenate(trials) if trials else np.zeros(0, np.int64)
        order = np.argsort(flat)
        self.trials = flat[order]
        # Where each row's arrays are: its chunk, and its place there.
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
        self._last: tuple[int, Record] | None = None

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.trials)

    def __repr__(self) -> str:
        settings = ", ".join([*self._plan.points[0], "seed"])
        bad = f", {len(self.nonfinite)} not finite" if self.nonfinite else ""
        metrics = ", ".join(self.metrics) or "nothing yet"
        return f"Results({len(self)} of {self._plan.size} trials: {settings} -> {metrics}{bad})"

    @property
    def finished(self) -> bool:
        """Whether every trial of the sweep is here."""
        return self.missing == 0

    def row(self, index: int) -> dict[str, Any]:
        """Return one row: the grid's values, the seed and the metrics, as plain Python."""
        metrics = {name: values[index].tolist() for name, values in self.metrics.items()}
        return {**self._plan.setting(int(self.trials[index])), **metrics}

    @property
    def rows(self) -> list[dict[str, Any]]:
        """All rows (see `row`)."""
        return [self.row(index) for index in range(len(self))]

    def table(self) -> dict[str, np.ndarray]:
        """Return the columns, of one dimension each, as `pandas.DataFrame` takes them.

        A metric that is an array becomes one column an entry: 'loss[0]', 'loss[1]', 'cm[0,1]'.
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
        """The rows in which a metric is NaN or infinite."""
        bad = np.zeros(len(self), bool)
        for metric in self.metrics.values():
            if np.issubdtype(metric.dtype, np.inexact):
                bad |= ~np.isfinite(metric.reshape(len(self), -1)).all(axis=1)
        return np.flatnonzero(bad).tolist()

    def arrays(self, index: int) -> Any:
        """Return the arrays of one row, masks as booleans.

        They come as nested dicts by the names of the trial's tree: the fields of a NamedTuple,
        the keys of a dict, the places ('0', '1') in a list; a single array comes as itself.
        They are read from disk where the sweep was given a folder; one chunk is kept in memory.
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
