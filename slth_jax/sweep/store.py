"""The folder of a sweep: its configuration, one sealed folder a chunk, and the table.

    OUT/config.json     what the sweep is; comes with the first chunk, carries its own checksum
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
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from slth_jax import storage
from slth_jax.hosts import on_first
from slth_jax.storage import CheckpointError, Damaged
from slth_jax.sweep.config import difference, extends
from slth_jax.sweep.program import Record, empty_record

_log = logging.getLogger("slth_jax.sweep")

# What Orbax and the file system need beside the numbers of a chunk, in bytes; some 40 kB were seen.
_OVERHEAD = 1 << 18


class Store:
    """Reads and writes the folder of one sweep."""

    def __init__(self, out: str | os.PathLike[str], shard: tuple[int, int] = (0, 1)):
        """Use the folder `out` for shard `i` of `n`."""
        self.out, self._shard = Path(out).absolute(), shard
        self._owner = f"{shard[0]}-of-{shard[1]}"
        self._config: dict[str, Any] | None = None  # to be recorded with the first chunk

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Hold the folder: all of it, or one shard of it beside the other shards."""
        return storage.lock_shard(self.out, *self._shard)

    def begun(self) -> bool:
        """Return whether the folder holds a sweep: its configuration and a finished chunk.

        Without a chunk, the configuration is what a killed process left: it binds nobody.
        """
        return self._config_path.exists() and self._any_chunk()

    @property
    def _config_path(self) -> Path:
        return self.out / "config.json"

    def _any_chunk(self) -> bool:
        chunks = self.out / "chunks"
        return chunks.is_dir() and any(path.name.isdigit() for path in chunks.iterdir())

    def open(self, config: Mapping[str, Any]) -> None:
        """Compare the configuration with the one that is there; keep it for the first chunk.

        Raises:
          CheckpointError: the folder holds something else; the line names the first difference.
        """
        chunks = storage.make_folder(self.out / "chunks")
        with self._deciding():
            if self._any_chunk():
                if not self._config_path.exists():
                    what = f"{chunks} has results but {self._config_path} is missing"
                    raise CheckpointError(f"{what}; use a new folder")
                self.compare(self.read_config(), config)
        self._config = dict(config)
        for left in chunks.glob("*.tmp" if self._shard[1] == 1 else f"*.{self._owner}.tmp"):
            shutil.rmtree(left, ignore_errors=True)

    def _deciding(self) -> contextlib.AbstractContextManager[None]:
        """Hold the configuration: of several shards the first to finish a chunk decides it."""
        return storage.lock(self.out, name="lock-config", wait=True)

    def _record(self) -> None:
        """Write the configuration, unless it is there, or one that has still more seeds."""
        if self._config is None:
            return
        if self.begun():
            there = self.read_config()
            # Another shard may have been first: with other settings, or with still more seeds.
            if extends(self._config, there):
                self.compare(self._config, there)
            else:
                self.compare(there, self._config)
                storage.write_json(self._config_path, self._config, checksum=True)
        else:
            storage.write_json(self._config_path, self._config, checksum=True)
        self._config = None

    def read_config(self) -> dict[str, Any]:
        """Return the configuration."""
        return storage.read_json(self._config_path, checksum=True)

    def plan(self) -> dict[str, Any] | None:
        """Return the plan of the sweep that is there, as `make_plan` takes it, or None."""
        return self.read_config()["plan"] if self.begun() else None

    def compare(self, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
        """Refuse a sweep `here` that is not the one of this folder, nor that with more seeds."""
        found = difference(there, here)
        if found:
            raise CheckpointError(f"{self.out} holds another sweep: {found}; use a new folder")

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
            with self._deciding():
                self._record()
                if self.has(number):  # a shard of another division was first, with the same bits
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
