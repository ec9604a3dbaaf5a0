"""The best evaluation so far, of each run on its own."""

from typing import NamedTuple

import jax
import numpy as np

from slth_jax.edge_popup.scores import State
from slth_jax.types import Array, PyTree


class Best(NamedTuple):
    """What is kept of the best evaluation; a first axis of runs where there are several.

    Attributes:
      loss, step: float32 and int32; infinity and 0 before any evaluation.
      masks: one bit a connection, by name.
      params: what the masks belong to and training moves: parameters that learn, and the weights
        where they are re-drawn. Empty where nobody asks for it.
    """

    loss: np.ndarray
    step: np.ndarray
    masks: dict[str, Array]
    params: dict[str, Array]

    def updated(self, losses: np.ndarray, step: int, now: "Best") -> "Best":
        """Return the best with an evaluation at `step` taken in; `now` has its masks and params."""
        better = losses < self.loss
        if np.all(better):
            masks, params = now.masks, now.params
        else:
            masks, params = _picked(better, (now.masks, now.params), (self.masks, self.params))
        return Best(
            np.where(better, losses, self.loss).astype(np.float32),
            np.where(better, step, self.step).astype(np.int32),
            masks,
            params,
        )


def moving(state: State, *, weights: bool) -> dict[str, Array]:
    """Return the parameters that a best evaluation must remember besides its masks."""
    return {**(state.weights if weights else {}), **state.trainable.learned}


def _picked(better: np.ndarray, now: PyTree, before: PyTree) -> PyTree:
    """Return `now` for the runs that got better, `before` for the others."""

    def pick(new: Array, old: Array) -> np.ndarray:
        return np.where(better.reshape(better.shape + (1,) * (new.ndim - better.ndim)), new, old)

    return jax.tree.map(pick, now, before)
