"""The folder of a sweep: its configuration, one sealed folder a chunk, and the table.

    OUT/config.json     what the sweep is; carries its own checksum
    OUT/chunks/000012/  results of one chunk: `record` (Orbax) and SHA256SUMS
    OUT/table.csv       all rows, once every chunk is there; SHA256SUMS beside it
    OUT/lock            held while a process writes here

A chunk's folder appears by one rename, after everything in it was flushed: it is there entirely
or not at all.
"""

import contextlib
import csv
import io
import itertools
import logging
import os
import reprlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from slth_jax import storage
from slth_jax.storage import CheckpointError, Damaged
from slth_jax.sweep.hosts import on_first
from slth_jax.sweep.program import Record, empty_record

_log = logging.getLogger("slth_jax.sweep")

# What Orbax and the file system need beside the numbers of a chunk, in bytes; some 40 kB were seen.
_OVERHEAD = 1 << 18


class Store:
    """Reads and writes the folder of one sweep."""

    def __init__(self, out: str | os.PathLike[str], shard: tuple[int, int] = (0, 1)):
        """Use the folder `out` for shard `i` of `n`."""
        self.out, self._alone = Path(out).absolute(), shard[1] == 1
        self._owner = f"{shard[0]}-of-{shard[1]}"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder: all of it, or one shard of it beside the other shards."""
        with storage.lock(self.out, shared=not self._alone):
            if self._alone:
                yield
            else:
                with storage.lock(self.out, name=f"lock-{self._owner}"):
                    yield

    def open(self, config: Mapping[str, Any]) -> None:
        """Write the configuration, or compare it with the one that is there.

        Raises:
          CheckpointError: the folder holds something else; the line names the first difference.
        """
        path, chunks = self.out / "config.json", self.out / "chunks"
        if path.exists():
            self.compare(config)
        elif chunks.exists() and any(chunks.iterdir()):
            raise CheckpointError(f"{chunks} has results but {path} is missing; use a new folder")
        else:
            storage.write_json(path, config, checksum=True)
        storage.make_folder(chunks)
        for left in chunks.glob("*.tmp" if self._alone else f"*.{self._owner}.tmp"):
            shutil.rmtree(left, ignore_errors=True)

    def read_config(self) -> dict[str, Any]:
        """Return the configuration."""
        return storage.read_json(self.out / "config.json", checksum=True)

    def compare(self, config: Mapping[str, Any]) -> None:
        """Refuse a `config` unlike the one in the folder, naming the first difference."""
        there, here = self.read_config(), storage.plain(config)
        # The trial's name is for people: its computation is compared by its fingerprint.
        here["trial"] = there.get("trial")
        difference = _difference(there, here)
        if difference:
            raise CheckpointError(f"{self.out} holds another sweep: {difference}; use a new folder")

    def has(self, number: int) -> bool:
        """Return whether a chunk is there, whole or damaged."""
        return self._chunk(number).is_dir()

    def _chunk(self, number: int) -> Path:
        return self.out / "chunks" / f"{number:06d}"

    def finished(self, numbers: Sequence[int]) -> list[int]:
        """Return which chunks are there and whole; move damaged ones aside, deleting nothing."""
        whole = []
        for number in filter(self.has, numbers):
            try:
                storage.check(self._chunk(number))
                whole.append(number)
            except Damaged as error:
                aside = storage.make_folder(self.out / "damaged")
                free = next(
                    i for i in itertools.count() if not (aside / f"{number:06d}.{i}").exists()
                )
                storage.move(self._chunk(number), aside / f"{number:06d}.{free}")
                _log.warning("%s; moved to %s, its trials are computed again", error, aside)
        return whole

    def read(self, number: int, spec: Mapping[str, Any], count: int) -> Record:
        """Return the results of a chunk of `count` trials of the program with this spec.

        Raises:
          Damaged: a file of the chunk is not what was written.
        """
        storage.check(self._chunk(number))
        like = empty_record(spec, count)
        filled = {name: part for name, part in like.items() if part}
        return {**like, **storage.load_tree(self._chunk(number) / "record", filled)}

    def save(self, number: int, record: Record) -> Callable[[], None]:
        """Start saving a chunk; call what this returns to make it durable and visible.

        Every process calls both.
        """
        aside = self.out / "chunks" / f"{number:06d}.{self._owner}.tmp"

        def prepare() -> None:
            shutil.rmtree(aside, ignore_errors=True)
            storage.make_folder(aside)
            size = sum(array.nbytes for part in record.values() for array in part.values())
            storage.check_room(aside, size + _OVERHEAD)

        def commit() -> None:
            storage.seal(aside)
            if self.has(number):  # another shard of another division was first, with the same bits
                shutil.rmtree(aside, ignore_errors=True)
            else:
                storage.move(aside, self._chunk(number))

        on_first(prepare)
        filled = {name: part for name, part in record.items() if part}
        finish_record = storage.save_tree(aside / "record", filled)

        def finish() -> None:
            finish_record()
            on_first(commit)

        return finish

    def write_table(self, table: Mapping[str, np.ndarray]) -> None:
        """Write the columns as `table.csv`, and its checksum beside it."""
        with storage.writing(self.out / "table.csv") as file:
            text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(table)
            columns = [column.tolist() for column in table.values()]
            writer.writerows(zip(*columns, strict=True))
            text.detach()
        storage.seal(self.out, ("table.csv",))

    def check_table(self) -> None:
        """Say so where the table was damaged; results are read from the chunks, not from it."""
        try:
            if (self.out / storage.SUMS).exists():
                storage.check(self.out, ("table.csv",))
        except Damaged as error:
            _log.warning("%s; run the sweep again to write it anew", error)


def _difference(there: Mapping[str, Any], here: Mapping[str, Any], at: str = "") -> str | None:
    """Return the first difference of two configurations in words."""
    short = reprlib.Repr()
    short.maxlist = short.maxdict = 6
    for name in [*here, *(name for name in there if name not in here)]:
        old, new = there.get(name), here.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            inner = _difference(old, new, f"{at}{name}.")
            if inner:
                return inner
        elif old != new:
            return f"{at}{name} is {short.repr(old)} there and {short.repr(new)} here"
    return None
