"""Two formats of pieces (saved results of a run): a folder written by Orbax, or a single file.

A piece is a tree of arrays with notes (a dict of JSON values). `start` writes a piece under a
temporary name. The piece is renamed when it is complete, so that a piece is either complete or
absent. The module `objects` contains the format of pieces in a bucket.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors
import safetensors.numpy

from slth_jax.distributed import on_first
from slth_jax.storage.arrays import load_tree, save_tree
from slth_jax.storage.errors import Damaged, reason
from slth_jax.storage.files import (
    check_room,
    make_folder,
    move,
    read_bytes,
    read_json,
    write_bytes,
    write_json,
)
from slth_jax.storage.hashes import array_hash
from slth_jax.storage.places import Place, remove
from slth_jax.storage.sums import check, seal
from slth_jax.types import PyTree

# The bytes that Orbax and the file system need besides the arrays; about 40 kB were measured.
_OVERHEAD = 1 << 18
_NOTES = "notes.json"
DAMAGED = "damaged"  # the name of the folder for damaged pieces


class Pending(NamedTuple):
    """The two functions that complete the saving of a piece (a tree of arrays with notes).

    Attributes:
      finish: a function that every process must call; it writes the arrays of this process.
      commit: a function that the first process must call after `finish`; it makes the piece
        visible, unless another process has already saved the same piece.
    """

    finish: Callable[[], None]
    commit: Callable[[], object]


class Renamed:
    """A format whose pieces are written under a temporary name and then renamed."""

    suffix = ""

    def names(self, pieces: Path) -> list[str]:
        """Return the sorted names of all pieces in a folder, complete or damaged."""
        return sorted(
            entry.name.removesuffix(self.suffix)
            for entry in (pieces.iterdir() if pieces.is_dir() else ())
            if entry.is_dir() == (not self.suffix)
            and entry.name.endswith(self.suffix)
            and not entry.name.endswith(".tmp")
            and entry.name != DAMAGED
        )

    def check(self, path: Path) -> dict[str, Any]:
        """Compare a piece with its checksums and return its notes."""
        raise NotImplementedError

    def notes(self, path: Path) -> dict[str, Any]:
        """Make the checks that must precede `load`, and return the notes of the piece."""
        return self.check(path)

    def drop(self, place: Path) -> None:
        """Remove a piece."""
        remove(place)

    def clean(self, pieces: Path, ending: str) -> None:
        """Remove incomplete pieces, whose names end in `ending`."""
        for left in pieces.glob(f"*{ending}"):
            remove(left)


def _rename(aside: Path, place: Path) -> None:
    if place.exists():  # a shard i/m with a different m has written the same bits
        remove(aside)
    else:
        move(aside, place)


class Folders(Renamed):
    """The format of a piece as a folder of `arrays` (by Orbax), `notes.json` and `SHA256SUMS`."""

    def check(self, path: Path) -> dict[str, Any]:
        """Compare all files of a piece with their checksums; return the notes of the piece.

        Raises:
          Damaged: a file is missing, superfluous or changed.
        """
        check(path)
        # Pieces of the first versions have no notes.
        return read_json(path / _NOTES) if (path / _NOTES).exists() else {}

    def load(self, path: Path, like: PyTree) -> PyTree:
        """Return the arrays of a checked piece in the structure, shapes and dtypes of `like`."""
        old = path / "record"  # the name in sweeps of the first versions
        return load_tree(old if old.exists() else path / "arrays", like)

    def start(self, place: Path, aside: Path, arrays: PyTree, notes: Mapping[str, Any]) -> Pending:
        """Start writing the piece under the temporary path `aside`.

        Every process calls this function. `Pending.commit` renames the piece to `place`.
        """

        def prepare() -> None:
            remove(aside)
            make_folder(aside)
            leaves = jax.tree.leaves(arrays)
            check_room(aside, sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) + _OVERHEAD)

        def complete() -> None:
            write_json(aside / _NOTES, notes)
            seal(aside)

        on_first(prepare)
        finish_arrays = save_tree(aside / "arrays", arrays)

        def finish() -> None:
            finish_arrays()
            on_first(complete)

        return Pending(finish, lambda: _rename(aside, place))


class Files(Renamed):
    """The format of a piece as one safetensors file, with notes and checksums as metadata.

    The file's metadata consist of the checksum of the notes, a space, and the notes as JSON. The
    entry 'sha256' of the notes is the checksum of the arrays.
    """

    suffix = ".safetensors"

    def check(self, path: Place) -> dict[str, Any]:
        """Compare the arrays of a piece with their checksum; return the notes of the piece.

        Raises:
          Damaged: the bytes of the file have changed.
        """
        return self._read(path)[1]

    def load(self, path: Place, like: PyTree = None) -> Any:
        """Return a dict from name to array; `like` is ignored, since the file has the shapes."""
        return self._read(path)[0]

    def start(
        self, place: Path, aside: Path, arrays: Mapping[str, np.ndarray], notes: Mapping[str, Any]
    ) -> Pending:
        """Encode the piece; return functions that write it to a temporary file and rename the file.

        `Pending.finish` writes the file `aside`, and `Pending.commit` renames it to `place`.
        """
        data = encode(arrays, notes)
        finish = lambda: on_first(lambda: write_bytes(aside, data))  # noqa: E731
        return Pending(finish, lambda: _rename(aside, place))

    def _read(self, path: Place) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        return decode(path, read_bytes(path))


def encode(arrays: Mapping[str, np.ndarray], notes: Mapping[str, Any]) -> bytes:
    """Return the bytes of a safetensors file with arrays, notes and checksums."""
    text = json.dumps({**notes, "sha256": array_hash(arrays)})
    return safetensors.numpy.save(dict(arrays), metadata={"piece": f"{_sum(text)} {text}"})


def decode(path: Place, data: bytes) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the arrays and the notes that `encode` put into the bytes of a file.

    Raises:
      Damaged: the bytes have changed; the error message names `path`.
    """
    try:
        arrays = safetensors.numpy.load(data)
        header = data[8 : 8 + int.from_bytes(data[:8], "little")]
        entry = json.loads(header)["__metadata__"]["piece"]
        recorded_sum, _, text = entry.partition(" ")
        sealed = recorded_sum == _sum(text)
        notes = json.loads(text if sealed else entry)
        recorded = notes.pop("sha256")
    except (
        safetensors.SafetensorError, ValueError, KeyError, TypeError, AttributeError,
        RecursionError,
    ) as error:  # fmt: skip
        raise Damaged(f"{path} is damaged: {reason(error)}") from error
    total = array_hash(arrays) if sealed else _first_sum(arrays)
    if recorded != total or sealed != ("run" in notes):
        raise Damaged(f"{path} is damaged: its checksum does not match")
    return arrays, notes


def _sum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _first_sum(arrays: Mapping[str, np.ndarray]) -> str:
    """Return the checksum of the library's first versions, which covers only the arrays' bytes."""
    return hashlib.sha256(b"".join(arrays[name].tobytes() for name in sorted(arrays))).hexdigest()


Form = Folders | Files
