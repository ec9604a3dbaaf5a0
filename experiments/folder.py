"""The folder that a run leaves behind: configuration, rows, summary, figures, tickets."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from slth_jax import checks, storage, sweep
from slth_jax.cli import progress
from slth_jax.storage import CheckpointError

CONFIG, ROWS, SUMMARY = storage.CONFIG, "rows.jsonl", "summary.json"
# What may lie in a folder, beside locks, before its configuration is recorded.
BEFORE = ("checkpoints", "logs")


class Sweep(NamedTuple):
    """A trial and the grid that it is run over; see `sweep.run` for `padded`, `batch`, `chunk`.

    Programs are compiled at the largest padded size: narrower sources cost little in it. A run
    of several sweeps names each one's `part`.
    """

    what: str  # for the progress bar
    trial: Callable
    grid: Mapping[str, Sequence[Any]]
    padded: Sequence[str]
    batch: int | None = None
    chunk: int | None = None
    part: str = ""

    def options(self) -> dict[str, Any]:
        """Return the arguments of `sweep.run`, besides the trial and the seeds."""
        named = ("grid", "padded", "batch", "chunk")
        return {name: getattr(self, name) for name in named} | {"buckets": "largest"}


class Incomplete(Exception):
    """A part of a sweep has ended well, but other parts are missing for a summary."""


class RunFolder:
    """One run's folder, held by a lock while the run lasts.

    Of several processes that run one sweep together only the first writes storage.
    """

    def __init__(self, folder: storage.RunFolder, *, shard: str | None, quiet: bool, writes: bool):
        """Use `open` instead: it makes and locks the folder."""
        self.path, self.config = folder.path, folder.config
        self.shard = shard
        self.quiet = quiet
        self.writes = writes
        self.captions: dict[str, str] = {}  # what each figure shows, in words
        self._folder = folder
        self._recorded = False
        # A folder of fewer seeds is not finished: the run goes on.
        self.finished = folder.recorded() == self.config and (self.path / SUMMARY).exists()

    def record(self) -> None:
        """Write the configuration, once there is a result to keep with it.

        A summary of fewer seeds is removed: it is not this configuration's.
        """
        if self.writes and not self._recorded:
            self._folder.compare()
            if self._folder.recorded() != self.config:
                (self.path / SUMMARY).unlink(missing_ok=True)
            self._folder.record()
            self._recorded = True

    @property
    def checkpoints(self) -> Path:
        """Where sweeps and trainings keep what they have computed."""
        return self.path / "checkpoints"

    @property
    def tickets(self) -> Path:
        """Where found tickets go, as ``NAME.ticket.safetensors``."""
        return storage.make_folder(self.path / "tickets")

    def sweep(self, what: Sweep) -> sweep.Results:
        """Run a sweep in this folder, with a progress bar, and return all its results.

        Raises:
          Incomplete: with `shard`, when trials of other shards are missing.
        """
        options = dict(self.config["options"])
        seeds = options.pop("seeds")  # more of them change no other trial
        where = self.checkpoints / what.part
        with self.progress(what.what) as update:
            results = sweep.run(
                what.trial,
                seeds=seeds,
                out=where,
                shard=self.shard,
                progress=update,
                config=options,
                **what.options(),
            )
        self.record()
        if results.missing:
            try:
                return sweep.load(where)
            except CheckpointError as error:
                raise Incomplete(f"shard {self.shard} is done; {error}") from error
        return results

    def write_rows(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write one measurement a line to ``rows.jsonl``."""
        if self.writes:
            self.record()
            storage.write_rows(self.path / ROWS, rows)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write ``summary.json``, last of all: its presence says that the run is complete."""
        if self.writes:
            self.record()
            storage.write_json(self.path / SUMMARY, summary)

    def read_summary(self) -> dict[str, Any]:
        """Return what `write_summary` wrote."""
        return storage.read_json(self.path / SUMMARY)

    def figure(self, figure: Any, name: str) -> None:
        """Write a matplotlib figure as ``name.png`` and ``name.svg``, and note its words."""
        from experiments import plots

        self.captions[name] = plots.caption(figure)
        for kind in ("png", "svg") if self.writes else ():
            plots.save(figure, self.path / f"{name}.{kind}")

    @contextlib.contextmanager
    def progress(self, what: str) -> Iterator[Callable[[int, int], None]]:
        """Show a bar with the time left; yield ``update(done, total)``.

        The first thing done records the configuration.
        """
        with progress.bar(what, self.quiet) as show:

            def update(done: int, total: int) -> None:
                if done:
                    self.record()
                show(done, total)

            yield update


@contextlib.contextmanager
def open(  # the word for it, always written folder.open
    path: str,
    experiment: str,
    config: Any,
    *,
    resume: bool = True,
    shard: str | None = None,
    quiet: bool = False,
    writes: bool = True,
) -> Iterator[RunFolder]:
    """Make or continue the folder of a run and hold it.

    Args:
      path: where.
      experiment: its name.
      config: the experiment's `Config`.
      resume: continue what a run of the same configuration has left; else refuse it.
      shard: 'i/n' for a part of the sweep; several parts may hold the folder at once.
      quiet: show no progress.
      writes: whether this process is the one that writes; the others hold no lock.

    Raises:
      CheckpointError: the folder is in use, cannot be written to, or holds other results.
    """
    where = Path(path).absolute()
    if where.exists() and not where.is_dir():
        raise checks.fail("--out", "a folder", f"a file, {where}")
    options = {"experiment": experiment, "options": dataclasses.asdict(config)}
    kept = storage.RunFolder(where, options, grows=("options.seeds",), shard=shard, pieces=None)
    _refuse_foreign(where)
    with kept.claim():
        if not resume and kept.recorded() is not None:
            raise CheckpointError(f"{where} holds results already; use another folder, or --resume")
        yield RunFolder(kept, shard=shard, quiet=quiet, writes=writes)


def _refuse_foreign(where: Path) -> None:
    """Refuse a folder with files in it that no run has written."""
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
