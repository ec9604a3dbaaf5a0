"""The folder of a sweep: the results of each chunk of trials, and the table of all trials.

OUT/config.json     everything that the results depend on; written with the first chunk
OUT/chunks/000012/  the results of one chunk (see `storage.RunFolder`)
OUT/table.csv       all rows, once every chunk is complete; SHA256SUMS beside it
"""

import contextlib
import csv
import hashlib
import io
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from slth_jax import storage
from slth_jax.storage import CheckpointError, Damaged, RunFolder
from slth_jax.sweep.plan import Chunk, Plan
from slth_jax.sweep.program import Record, empty_record

_log = logging.getLogger("slth_jax.sweep")
_SEEDS = ("plan.seeds", "plan.portions")


class Store:
    """The folder of one sweep, for reading and writing."""

    def __init__(
        self,
        out: str | os.PathLike[str],
        plan: Plan,
        config: Mapping[str, Any],
        shard: str | None = None,
    ):
        """Use the folder `out` for a sweep of this `plan` and `config` (see `config.describe`)."""
        self.plan, self._programs = plan, config["programs"]
        self.folder = _folder(out, config, shard)

    def claim(self) -> contextlib.AbstractContextManager[None]:
        """Lock the folder or, if the sweep has shards, this shard's part of the folder."""
        return self.folder.claim()

    def existing(self) -> set[int]:
        """Return the numbers of the chunks that exist, whether they are complete or damaged."""
        names = set(self.folder.names())
        return {chunk.number for chunk in self.plan.chunks if _name(chunk.number) in names}

    def finished(self, numbers: list[int]) -> list[int]:
        """Return which of these chunks are complete; move damaged chunks to another folder."""
        existing, chunks = self.existing(), self.plan.chunks
        names = [(n, _name(n), self._contents(chunks[n])) for n in numbers if n in existing]
        return [n for n, name, contents in names if self.folder.whole(name, contents)]

    def read(self, number: int) -> Record:
        """Return the results of a chunk.

        Raises:
          Damaged: a byte of the chunk has changed, or the chunk belongs to another sweep.
        """
        chunk = self.plan.chunks[number]
        like = empty_record(self._programs[chunk.group], len(chunk.trials))
        filled = {name: part for name, part in like.items() if part}
        arrays, _ = self.folder.load(_name(number), filled, contents=self._contents(chunk))
        return {**like, **arrays}

    def save(self, number: int, record: Record) -> Callable[[], None]:
        """Start saving a chunk; return a function that completes the save and makes it durable."""
        filled = {name: part for name, part in record.items() if part}
        contents = self._contents(self.plan.chunks[number])
        return self.folder.save(_name(number), filled, contents=contents)

    def _contents(self, chunk: Chunk) -> str:
        """Return one SHA-256 of the points and seeds of all trials in a chunk."""
        point, seed = np.divmod(chunk.trials, len(self.plan.seeds))
        numbers = np.stack([point, self.plan.seeds[seed]]).astype("<i8")  # [2, trial]
        return hashlib.sha256(numbers.tobytes()).hexdigest()

    def write_table(self, table: Mapping[str, np.ndarray]) -> None:
        """Write the columns to `table.csv`, and the file's checksum to SHA256SUMS."""
        with storage.writing(self.folder.path / "table.csv") as file:
            text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(table)
            columns = [column.tolist() for column in table.values()]
            writer.writerows(zip(*columns, strict=True))
            text.detach()
        storage.seal(self.folder.path, ("table.csv",))

    def check_table(self) -> None:
        """Warn if `table.csv` is damaged; the results themselves are read from the chunks."""
        try:
            if (self.folder.path / storage.SUMS).exists():
                storage.check(self.folder.path, ("table.csv",))
        except Damaged as error:
            _log.warning("%s; run the sweep again to write it anew", error)


def recorded(out: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Return the configuration of a folder's sweep; None if the folder has no finished chunk."""
    return _folder(out, {}).recorded()


def read_config(out: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the configuration of a folder's sweep, even if no chunk is finished."""
    path = storage.place(out).absolute() / storage.CONFIG
    if not path.exists():
        raise CheckpointError(f"{out} has no results of a sweep yet")
    return storage.read_json(path, checksum=None)


def _folder(
    out: str | os.PathLike[str], config: Mapping[str, Any], shard: str | None = None
) -> RunFolder:
    return RunFolder(
        out,
        config,
        kind="sweep",
        grows=_SEEDS,
        ignores=("trial",),
        optional=("draws",),
        shard=shard,
        pieces="chunks",
        explain=_explain,
    )


def _explain(parts: tuple[str, Any, Any], stored: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Describe a difference between two sweeps; if their programs differ, name the trial."""
    place, before, now = parts
    if place == "draws":
        release = "another release of JAX, or other settings such as jax_threefry_partitionable"
        return f"random numbers differ from those of its trials ({release})"
    if place == "plan.portions":  # the seeds differ: they were not added at the end
        place, before, now = "seeds", stored["plan"]["seeds"], new["plan"]["seeds"]
    if not place.startswith("programs["):
        return storage.explain((place.removeprefix("plan."), before, now))
    number, _, inner = place.removeprefix("programs[").partition("].")
    words = new["programs"][int(number)]["of"] if int(number) < len(new["programs"]) else ""
    at = f" at {words}" if words else ""
    detail = "" if inner == "fingerprint" else f": {storage.explain((inner, before, now))}"
    name = "" if stored["trial"] == new["trial"] else f", which was {stored['trial']}"
    return f"the trial {new['trial']}{name} computes something else{at}{detail}"


def _name(number: int) -> str:
    return f"{number:06d}"
