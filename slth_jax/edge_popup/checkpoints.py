"""What a training leaves on disk: its state and its best masks, sealed, the last two of them."""

import contextlib
import functools
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from slth_jax import storage
from slth_jax.distributed import on_first
from slth_jax.storage import CheckpointError
from slth_jax.types import PyTree

_KEPT = 2  # the last one, and one more should it be damaged
_NAME = re.compile(r"step-(\d{8})")
_FORM = 2  # of what lies in a checkpoint


class Store:
    """The checkpoints of one training in a folder; of several processes the first one writes.

    Args:
      folder: made with its parents where it is missing.
      config: what the results depend on; a folder of another config is refused.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]):
        self._folder, self._config = storage.make_folder(folder), storage.plain(config)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder."""
        with contextlib.ExitStack() as stack:
            on_first(lambda: stack.enter_context(storage.lock(self._folder)) and None)
            yield

    def restore(self, like: PyTree) -> tuple[PyTree, dict[str, Any]] | None:
        """Return the arrays and the notes of the newest whole checkpoint; None where there is none.

        Raises:
          CheckpointError: the folder is of another training (the line names the first difference),
            or all checkpoints are damaged.
        """
        problem: CheckpointError | None = None
        for path in self._saved():
            try:
                notes = on_first(functools.partial(_notes, path))
            except CheckpointError as error:
                problem = problem or error
                continue
            self._compare(notes["config"])
            try:
                return storage.load_tree(path / "arrays", like), notes
            except CheckpointError as error:
                problem = problem or error
        if problem is not None:
            raise problem
        return None

    def save(self, step: int, arrays: PyTree, notes: Mapping[str, Any]) -> None:
        """Write a checkpoint aside, rename it, and remove those that are older than two."""
        path = self._folder / f"step-{step:08d}"
        aside = self._folder / f".{path.name}.tmp"
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(arrays))

        def prepare() -> None:
            shutil.rmtree(aside, ignore_errors=True)
            storage.make_folder(aside)
            storage.check_room(aside, size + (1 << 18))

        on_first(prepare)
        storage.save_tree(aside / "arrays", arrays)()

        def finish() -> None:
            told = {"form": _FORM, "config": self._config, **notes}
            storage.write_json(aside / "notes.json", told)
            storage.seal(aside)
            shutil.rmtree(path, ignore_errors=True)  # a damaged one that was passed over
            storage.move(aside, path)
            for old in self._saved()[_KEPT:]:
                shutil.rmtree(old, ignore_errors=True)

        on_first(finish)

    def _compare(self, there: Mapping[str, Any]) -> None:
        for name, here in self._config.items():
            if there.get(name) != here:
                raise CheckpointError(
                    f"{self._folder} holds another fit: {name} is {there.get(name)!r} there "
                    f"and {here!r} here"
                )

    def _saved(self) -> list[Path]:
        """Return the checkpoints, newest first."""
        return sorted((p for p in self._folder.iterdir() if _NAME.fullmatch(p.name)), reverse=True)


def _notes(path: Path) -> dict[str, Any]:
    """Return what lies beside the arrays of a checkpoint whose files are whole."""
    storage.check(path)
    if not (path / "notes.json").exists():
        raise CheckpointError(f"{path} holds a checkpoint of another version of slth_jax")
    return storage.read_json(path / "notes.json")
