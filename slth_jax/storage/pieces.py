"""Two forms in which a piece of a run is stored: a folder through Orbax, or a single file.

A piece is a tree of arrays with notes. `start` writes it aside; `RunFolder` then renames it, so
that a piece is complete or absent.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from slth_jax.distributed import on_first
from slth_jax.storage.arrays import load_tree, save_tree
from slth_jax.storage.files import (
    Damaged,
    check_room,
    make_folder,
    read_json,
    reason,
    write_bytes,
    write_json,
)
from slth_jax.storage.hashes import array_hash
from slth_jax.storage.sums import check, seal
from slth_jax.types import PyTree

# Bytes that Orbax and the file system need beside the numbers; some 40 kB were measured.
_OVERHEAD = 1 << 18
_NOTES = "notes.json"


class Folders:
    """A piece as a folder: `arrays` (Orbax, any tree), `notes.json`, `SHA256SUMS`."""

    suffix = ""

    def check(self, path: Path) -> dict[str, Any]:
        """Compare all files with their checksums and return the notes.

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

    def start(self, aside: Path, arrays: PyTree, notes: Mapping[str, Any]) -> Callable[[], None]:
        """Start writing to `aside`; every process calls this, and the result to finish it."""

        def prepare() -> None:
            shutil.rmtree(aside, ignore_errors=True)
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

        return finish


class Files:
    """A piece as one safetensors file: NumPy arrays by name; notes and checksums in its metadata.

    The metadata entry is a checksum of the notes, a space, and the notes as JSON, in which the
    checksum of the arrays is 'sha256'.
    """

    suffix = ".safetensors"

    def check(self, path: Path) -> dict[str, Any]:
        """Compare the arrays with their checksum and return the notes.

        Raises:
          Damaged: the file is not the one that was written.
        """
        return self._read(path)[1]

    def load(self, path: Path, like: PyTree = None) -> dict[str, np.ndarray]:
        """Return the arrays by name; the file has their shapes and dtypes."""
        return self._read(path)[0]

    def start(
        self, aside: Path, arrays: Mapping[str, np.ndarray], notes: Mapping[str, Any]
    ) -> Callable[[], None]:
        """Return the call that writes the file `aside`."""
        text = json.dumps({**notes, "sha256": array_hash(arrays)})
        entry = f"{_sum(text)} {text}"
        data = safetensors.numpy.save(dict(arrays), metadata={"piece": entry})
        return lambda: on_first(lambda: write_bytes(aside, data))

    def _read(self, path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        try:
            with safetensors.safe_open(path, "numpy") as opened:
                entry = opened.metadata()["piece"]
                recorded_sum, _, text = entry.partition(" ")
                sealed = recorded_sum == _sum(text)
                notes = json.loads(text if sealed else entry)
                arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            recorded = notes.pop("sha256")
        except (
            safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError,
            RecursionError,
        ) as error:  # fmt: skip
            raise Damaged(f"{path} is damaged: {reason(error)}") from error
        # Pieces of the first versions have a sum of the arrays' bytes alone.
        plain = hashlib.sha256(b"".join(array.tobytes() for array in arrays.values())).hexdigest()
        if recorded != (array_hash(arrays) if sealed else plain) or sealed != ("run" in notes):
            raise Damaged(f"{path} is damaged: its checksum does not match")
        return arrays, notes


def _sum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
