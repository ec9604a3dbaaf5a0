"""Define the subject of a case: how a file or folder is written, damaged and read."""

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.fuzz import mutations


@dataclasses.dataclass(frozen=True)
class Subject:
    """A file or folder, and the functions that write, damage and read it.

    Attributes:
      name: the subject's name.
      write: the function that writes the subject into an empty folder.
      change: the function that damages a copy of that folder.
      read: the function that reads the folder and returns a result.
      sealed: whether every damage must be found. If True, reading the damaged folder must fail or
        return the same result as reading the undamaged folder.
    """

    name: str
    write: Callable[[Path], Any]
    change: Callable[[random.Random, Path], None]
    read: Callable[[Path], Any]
    sealed: bool = True


def bytes_of(name: str) -> Callable[[random.Random, Path], None]:
    """Return a function that randomly changes bytes of the file `name` in a folder."""

    def change(rng: random.Random, folder: Path) -> None:
        file = folder / name
        file.write_bytes(mutations.change_bytes(rng, file.read_bytes()))

    return change


def equal(a: Any, b: Any) -> bool:
    """Return whether two results have the same structure and the same bits."""
    a_leaves, a_tree = jax.tree.flatten(a)
    b_leaves, b_tree = jax.tree.flatten(b)
    return str(a_tree) == str(b_tree) and all(
        np.array_equal(np.asarray(x), np.asarray(y))
        for x, y in zip(a_leaves, b_leaves, strict=True)
    )
