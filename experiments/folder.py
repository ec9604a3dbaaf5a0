"""The folder that a run leaves behind: configuration, rows, summary, figures, tickets."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from slth_jax import checks, storage, sweep
from slth_jax.storage import CheckpointError

CONFIG, ROWS, SUMMARY = "config.json", "rows.jsonl", "summary.json"


class Incomplete(Exception):
    """A part of a sweep has ended well, but other parts are missing for a summary."""


class RunFolder:
    """One run's folder, held by a lock while the run lasts.

    Of several processes that run one sweep together only the first writes storage.
    """

    def __init__(
        self, path: Path, *, shard: str | None = None, quiet: bool = False, writes: bool = True
    ):
        """Use `open` instead: it makes and locks the folder, and compares configurations."""
        self.path = path
        self.shard = shard
        self.quiet = quiet
        self.writes = writes

    @property
    def checkpoints(self) -> Path:
        """Where the sweep keeps what it has computed."""
        return self.path / "checkpoints"

    @property
    def tickets(self) -> Path:
        """Where found tickets go, as ``NAME.ticket.safetensors``."""
        return storage.make_folder(self.path / "tickets")

    @property
    def finished(self) -> bool:
        """Whether a run of this configuration has ended here."""
        return (self.path / SUMMARY).exists()

    def sweep(self, trial: Callable, what: str, *, part: str = "", **options: Any) -> sweep.Results:
        """Run `sweep.run` in this folder, with a progress bar, and return all its results.

        A run of several sweeps names each one's `part`.

        Raises:
          Incomplete: with `shard`, when trials of other shards are missing.
        """
        with self.progress(what) as update:
            results = sweep.run(
                trial, out=self.checkpoints / part, shard=self.shard, progress=update, **options
            )
        if results.missing:
            try:
                return sweep.load(self.checkpoints / part)
            except CheckpointError as error:
                raise Incomplete(f"shard {self.shard} is done; {error}") from error
        return results

    def write_rows(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write one measurement a line to ``rows.jsonl``."""
        if self.writes:
            storage.write_rows(self.path / ROWS, rows)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write ``summary.json``, last of all: its presence says that the run is complete."""
        if self.writes:
            storage.write_json(self.path / SUMMARY, summary)

    def read_summary(self) -> dict[str, Any]:
        """Return what `write_summary` wrote."""
        return storage.read_json(self.path / SUMMARY)

    def figure(self, figure: Any, name: str) -> None:
        """Write a matplotlib figure as ``name.png`` and ``name.svg`` and close it."""
        from matplotlib import pyplot

        for kind in ("png", "svg") if self.writes else ():
            with storage.writing(self.path / f"{name}.{kind}") as file:
                figure.savefig(file, format=kind, dpi=160, bbox_inches="tight")
        pyplot.close(figure)

    @contextlib.contextmanager
    def progress(self, what: str) -> Iterator[Callable[[int, int], None]]:
        """Show a bar with the time left; yield ``update(done, total)``."""
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        bar = Progress(*columns, console=Console(stderr=True), disable=self.quiet)
        with bar:
            task = bar.add_task(what, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)


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
    wanted = storage.plain({"experiment": experiment, "options": dataclasses.asdict(config)})
    _refuse_foreign(where)
    with contextlib.ExitStack() as stack:
        if writes:
            stack.enter_context(storage.lock(storage.make_folder(where), shared=bool(shard)))
        if (where / CONFIG).exists():
            _compare(where, storage.read_json(where / CONFIG), wanted, resume)
        elif writes:
            storage.write_json(where / CONFIG, wanted)
        yield RunFolder(where, shard=shard, quiet=quiet, writes=writes)


def _refuse_foreign(where: Path) -> None:
    """Refuse a folder with files in it that no run has made."""
    if where.is_dir() and not (where / CONFIG).exists():
        others = sorted(entry.name for entry in where.iterdir() if entry.name != "lock")
        if others:
            raise CheckpointError(
                f"{where} is not a run's folder: it holds {others[0]}; use another"
            )


def _compare(where: Path, held: Any, wanted: Mapping[str, Any], resume: bool) -> None:
    """Refuse a folder that holds results of another configuration."""
    if not resume:
        raise CheckpointError(f"{where} holds results already; use another folder, or --resume")
    if held.get("experiment") != wanted["experiment"]:
        raise CheckpointError(
            f"{where} holds results of {held.get('experiment')}; use another folder"
        )
    before, now = held.get("options", {}), wanted["options"]
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            raise CheckpointError(
                f"{where} holds results for {name}={before.get(name)}, not {now.get(name)}; "
                "use another folder"
            )
