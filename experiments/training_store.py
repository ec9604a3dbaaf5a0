"""Checkpoints of training: the state of the runs, the best masks so far and the log."""

import functools
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from slth_jax import edge_popup, storage
from slth_jax.storage import CheckpointError
from slth_jax.sweep.hosts import on_first
from slth_jax.types import PyTree

_KEPT = 2  # checkpoints that stay: the last one, and one more should it be damaged
_NAME = re.compile(r"step-(\d{8})")


class Best(NamedTuple):
    """The best evaluation of each run so far; `masks` are packed, `[run, bytes]` by name."""

    loss: np.ndarray
    step: np.ndarray
    masks: dict[str, np.ndarray]

    def updated(
        self, losses: np.ndarray, step: int, masks: Callable[[], dict[str, np.ndarray]]
    ) -> "Best":
        """Return the best with an evaluation at `step` taken in."""
        better = losses < self.loss
        if not better.any():
            return self
        now = masks()
        return Best(
            np.where(better, losses, self.loss),
            np.where(better, step, self.step),
            {
                name: np.where(better[:, None], now[name], before)
                for name, before in self.masks.items()
            },
        )


class Runs(Protocol):
    """What the store asks of a program."""

    shapes: PyTree
    packed_shapes: dict[str, jax.ShapeDtypeStruct]

    def start(self) -> edge_popup.State:
        """Return the state of all runs before the first step."""

    def packed(self, state: edge_popup.State) -> dict[str, np.ndarray]:
        """Return the masks of all runs, one bit a connection."""


class Store:
    """The checkpoints of a group of runs in one folder."""

    def __init__(self, folder: Path, program: Runs):
        """Use `folder`, made with its parents where it is missing."""
        self._folder, self._program = storage.make_folder(folder), program

    def restore(self) -> tuple[edge_popup.State, Best, list[dict[str, Any]]]:
        """Return state, best and log of the newest whole checkpoint, or of the beginning.

        Raises:
          CheckpointError: there are checkpoints and all are damaged.
        """
        problem: CheckpointError | None = None
        for path in self._saved():
            try:
                log = on_first(functools.partial(_log, path))
                like = {"state": self._program.shapes, "best": self._empty()}
                tree = storage.load_tree(path / "arrays", like)
                best = jax.tree.map(np.asarray, tree["best"])
                return tree["state"], best, log
            except CheckpointError as error:
                problem = problem or error
        if problem is not None:
            raise problem
        state = self._program.start()
        best = self._empty()._replace(masks=self._program.packed(state))
        return state, best, []

    def save(self, state: edge_popup.State, best: Best, log: list[dict[str, Any]]) -> None:
        """Write a checkpoint aside, rename it, and remove those that are older than two."""
        path = self._folder / f"step-{int(log[-1]['step']):08d}"
        aside = self._folder / f".{path.name}.tmp"
        on_first(lambda: shutil.rmtree(aside, ignore_errors=True))
        on_first(lambda: str(storage.make_folder(aside)))
        storage.save_tree(aside / "arrays", {"state": state, "best": best})()

        def finish() -> None:
            storage.write_json(aside / "log.json", log)
            storage.seal(aside)
            shutil.rmtree(path, ignore_errors=True)  # a damaged one that was passed over
            storage.move(aside, path)
            for old in self._saved()[_KEPT:]:
                shutil.rmtree(old, ignore_errors=True)

        on_first(finish)

    def _saved(self) -> list[Path]:
        """Return the checkpoints, newest first."""
        found = [path for path in self._folder.iterdir() if _NAME.fullmatch(path.name)]
        return sorted(found, reverse=True)

    def _empty(self) -> Best:
        """Return the best of no evaluation, with masks of the right shapes."""
        masks = self._program.packed_shapes
        runs = self._program.shapes.step.shape[0]
        return Best(
            np.full(runs, np.inf, np.float32),
            np.zeros(runs, np.int32),
            {name: np.zeros(mask.shape, mask.dtype) for name, mask in masks.items()},
        )


def _log(path: Path) -> list[dict[str, Any]]:
    """Return the log of a checkpoint whose files are whole."""
    storage.check(path)
    return storage.read_json(path / "log.json")
