"""What a fit leaves on disk: its state and its best masks, sealed, the last two of them."""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from slth_jax import storage
from slth_jax.types import PyTree

_KEPT = 2  # the last one, and one more should it be damaged
_NAME = re.compile(r"step-(\d{8})")


def restore(folder: Path, like: PyTree, config: Mapping[str, Any]) -> tuple[PyTree, Any] | None:
    """Return the arrays and the log of the newest whole checkpoint; None where there is none.

    Raises:
      CheckpointError: the folder is of another fit (the line names the first difference), or all
        checkpoints are damaged.
    """
    problem: storage.CheckpointError | None = None
    for path in _saved(folder):
        try:
            storage.check(path)
            told = storage.read_json(path / "log.json")
        except storage.Damaged as error:
            problem = problem or error
            continue
        for name, here in storage.plain(config).items():
            there = told["config"].get(name)
            if there != here:
                raise storage.CheckpointError(
                    f"{folder} holds another fit: {name} is {there!r} there and {here!r} here"
                )
        return storage.load_tree(path / "arrays", like), told["log"]
    if problem is not None:
        raise problem
    return None


def save(folder: Path, step: int, arrays: PyTree, log: Any, config: Mapping[str, Any]) -> None:
    """Write a checkpoint aside, rename it, and remove those that are older than two."""
    path = folder / f"step-{step:08d}"
    aside = folder / f".{path.name}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    storage.make_folder(aside)
    size = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(arrays))
    storage.check_room(aside, size + (1 << 18))
    storage.save_tree(aside / "arrays", arrays)()
    storage.write_json(aside / "log.json", {"config": dict(config), "log": log})
    storage.seal(aside)
    shutil.rmtree(path, ignore_errors=True)  # a damaged one that was passed over
    storage.move(aside, path)
    for old in _saved(folder)[_KEPT:]:
        shutil.rmtree(old, ignore_errors=True)


def _saved(folder: Path) -> list[Path]:
    """Return the checkpoints, newest first."""
    return sorted((p for p in folder.iterdir() if _NAME.fullmatch(p.name)), reverse=True)
