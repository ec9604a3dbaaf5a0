"""Write and read the folder of a run: configuration, measurements, summary, figures, tickets."""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from slth_jax import checks, storage, sweep
from slth_jax.cli import progress
from slth_jax.distributed import on_first
from slth_jax.storage import CheckpointError

CONFIG, ROWS, SUMMARY, SHARDS = storage.CONFIG, "rows.jsonl", "summary.json", "shards.json"
# A folder may contain these entries, and locks, before its configuration is recorded.
BEFORE = ("checkpoints", "logs", SHARDS)


_log = logging.getLogger("experiments")


class Sweep(NamedTuple):
    """A trial function and the grid of its settings.

    `sweep.run` describes the fields `padded`, `batch`, `chunk` and `static`.

    Programs are compiled only for the largest padded size; a narrower source takes little more time
    in this program than in a program of the source's size. If a run has several sweeps, `part` is
    the name of the folder of this sweep. In sweeps of the same `kind`, the time of a trial is
    proportional to the sweep's `work`. An estimate of the cost therefore runs only one sweep of
    each kind.
    """

    what: str  # the title of the progress bar
    trial: Callable
    grid: Mapping[str, Sequence[Any]]
    padded: Sequence[str]
    batch: int | None = None
    chunk: int | None = None
    part: str = ""
    static: Sequence[str] = ()
    kind: str = ""
    work: float = 1.0

    def options(self) -> dict[str, Any]:
        """Return the keyword arguments with which `sweep.run` runs this sweep, except `seeds`."""
        named = ("grid", "padded", "batch", "chunk", "static")
        return {name: getattr(self, name) for name in named} | {"buckets": "largest"}


class Incomplete(Exception):
    """This shard of a sweep is complete, but other shards, which the summary needs, are missing."""


class RunFolder:
    """The folder of a run, which is locked during the run.

    If a run has several processes, only the first process writes files.
    """

    def __init__(self, folder: storage.RunFolder, *, shard: str | None, quiet: bool, writes: bool):
        """Call `open` instead of this method; `open` creates and locks the folder."""
        self.path, self.config = folder.path, folder.config
        self.shard = shard
        self.quiet = quiet
        self.writes = writes
        self.captions: dict[str, str] = {}  # from names of figures to captions
        self._folder = folder
        self._recorded = False
        # If the folder contains results of fewer seeds, it is not finished and the run continues.
        self.finished = on_first(self._is_finished)

    def _is_finished(self) -> bool:
        """Return whether the folder contains all results of this configuration without damage."""
        if self._folder.recorded() != self.config or not (self.path / SUMMARY).exists():
            return False
        try:
            check(self.path)
        except storage.Damaged as error:
            _log.warning("%s; results are written again from the checkpoints", error)
            return False
        return True

    def record(self) -> None:
        """Write the configuration. This method is called when the first result exists.

        If the folder contains the summary of a run with fewer seeds, the summary is removed.
        """
        if self.writes and not self._recorded:
            self._folder.compare()
            if self._folder.recorded() != self.config:
                (self.path / SUMMARY).unlink(missing_ok=True)
            self._folder.record()
            self._recorded = True

    @property
    def checkpoints(self) -> storage.Place:
        """The folder in which sweeps and trainings store their results."""
        return self.path / "checkpoints"

    @property
    def tickets(self) -> storage.Place:
        """The folder of ticket files, ``NAME.ticket.safetensors``."""
        return storage.make_folder(self.path / "tickets")

    def sweep(self, planned: Sweep) -> sweep.Results:
        """Run a sweep in this folder with a progress bar, and return all results of the sweep.

        Raises:
          Incomplete: the folder was opened with `shard`, and trials of other shards are missing.
        """
        options = dict(self.config["options"])
        seeds = options.pop("seeds")  # more seeds add trials, existing trials stay
        where = self.checkpoints / planned.part
        with self.progress(planned.what) as update:
            results = sweep.run(
                planned.trial,
                seeds=seeds,
                out=where,
                shard=self.shard,
                progress=update,
                config=options,
                **planned.options(),
            )
        self.record()
        if results.missing:
            try:
                return sweep.load(where)
            except CheckpointError as error:
                raise Incomplete(f"shard {self.shard} is done; {error}") from error
        return results

    def write_rows(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write ``rows.jsonl``, in which each line is a measurement."""
        if self.writes:
            self.record()
            storage.write_rows(self.path / ROWS, rows)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write ``summary.json`` and all results' checksums; all other files must exist."""
        if self.writes:
            self.record()
            storage.write_json(self.path / SUMMARY, summary)
            storage.seal(self.path, _results(self.path))

    def read_summary(self) -> dict[str, Any]:
        """Return the summary that `write_summary` wrote."""
        return storage.read_json(self.path / SUMMARY)

    def figure(self, figure: Any, name: str) -> None:
        """Write a matplotlib figure as ``name.png`` and ``name.svg``, and store its caption."""
        from experiments import plots

        self.captions[name] = plots.caption(figure)
        for kind in ("png", "svg") if self.writes else ():
            plots.save(figure, self.path / f"{name}.{kind}")

    @contextlib.contextmanager
    def progress(self, title: str) -> Iterator[Callable[[int, int], None]]:
        """Show progress and the remaining time; yield the function ``update(done, total)``.

        The first update with ``done > 0`` records the configuration.
        """
        with progress.bar(title, self.quiet) as show:

            def update(done: int, total: int) -> None:
                if done:
                    self.record()
                show(done, total)

            yield update


def check(path: storage.Place) -> None:
    """Compare the results of a finished run with their checksums.

    Raises:
      Damaged: a file is missing, superfluous or changed.
    """
    if (path / storage.SUMS).exists():  # runs of old versions have no checksums
        storage.check(path, _results(path))


def _results(path: storage.Place) -> list[str]:
    """Return the names of the result files, whose checksums are written with the summary."""
    patterns = (ROWS, SUMMARY, "*.png", "*.svg", "tickets/*")
    files: list[Any] = [file for pattern in patterns for file in path.glob(pattern)]
    return sorted(file.relative_to(path).as_posix() for file in files)


@contextlib.contextmanager
def open(  # hides the builtin in this module; callers write folder.open
    path: str,
    experiment: str,
    config: Any,
    *,
    resume: bool = True,
    shard: str | None = None,
    quiet: bool = False,
    writes: bool = True,
) -> Iterator[RunFolder]:
    """Create or continue the folder of a run and lock it.

    Args:
      path: the folder, on this machine or in a bucket (gs://, s3://).
      experiment: the name of the experiment.
      config: the experiment's `Config`.
      resume: whether to continue a run of the same configuration; if False, a folder that contains
        results is refused.
      shard: 'i/n' to run part i of n of the sweep, or 'i' if an earlier part recorded n; several
        parts may use the folder at once. None for the whole sweep.
      quiet: whether to hide the progress.
      writes: whether this process writes files; if there are several processes, only the first
        process writes.

    Raises:
      CheckpointError: the folder is in use, cannot be written to, or contains other results.
    """
    where = storage.place(path).absolute()
    if where.exists() and not where.is_dir():
        raise checks.fail("--out", "a folder", f"a file, {where}")
    options = {"experiment": experiment, "options": dataclasses.asdict(config)}
    _refuse_foreign(where)
    shard = on_first(lambda: _complete(shard, where))
    kept = storage.RunFolder(where, options, grows=("options.seeds",), shard=shard, pieces=None)
    with kept.claim():
        if shard is not None and writes:
            storage.write_json(where / SHARDS, {"count": checks.shard(shard)[1]})
        if not resume and kept.recorded() is not None:
            raise CheckpointError(f"{where} holds results already; use another folder, or --resume")
        yield RunFolder(kept, shard=shard, quiet=quiet, writes=writes)


def _complete(shard: str | None, where: storage.Place) -> str | None:
    """Return 'i/n' for the shard 'i'; n is the number of shards, recorded by an earlier shard."""
    if shard is None or not shard.isdigit():
        return shard
    if not (where / SHARDS).exists():
        raise checks.fail("shard", f"'i/n', since no shard has recorded n in {where}", repr(shard))
    return f"{shard}/{storage.read_json(where / SHARDS)['count']}"


def _refuse_foreign(where: storage.Place) -> None:
    """Refuse a folder if it contains files that no run has written."""
    if where.is_dir() and not (where / CONFIG).exists():
        others = sorted(
            entry.name
            for entry in where.iterdir()
            if entry.name not in BEFORE and not entry.name.startswith("lock")
        )
        if others:
            raise CheckpointError(
                f"{where} is not a run's folder: it holds {others[0]}; use another"
            )
