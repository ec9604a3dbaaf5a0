"""The best evaluation so far of each run."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int32, Shaped

from slth_jax.edge_popup.scores import State
from slth_jax.types import PyTree


class Best(NamedTuple):
    """The best evaluation of each run; the first axis of all arrays is the run.

    Attributes:
      loss, step: the loss and the step of the best evaluation; infinity and 0 before the first
        evaluation.
      masks: a dict from array name to packed mask, one bit per connection.
      moving: the other arrays of the state that training changes, by field name: 'trainable' (the
        learned arrays and, if there are controls, their weights), 'model' (the model's mutable
        state) and, if weights are re-drawn, 'weights'. `moving` is empty if only masks are stored.
    """

    loss: Float32[np.ndarray, " run"]
    step: Int32[np.ndarray, " run"]
    masks: dict[str, Shaped[Array | np.ndarray, "run bytes"]]
    moving: dict[str, PyTree]

    def updated(self, losses: Shaped[np.ndarray, " run"], step: int, now: "Best") -> "Best":
        """Return each run's better evaluation: this one, or `now`, which was made at `step`."""
        better = losses < self.loss
        arrays = now.masks, now.moving
        if not np.all(better):
            arrays = _picked(np.asarray(better), arrays, (self.masks, self.moving))
        return Best(
            np.where(better, losses, self.loss).astype(np.float32),
            np.where(better, step, self.step).astype(np.int32),
            *arrays,
        )


def moving(state: State, *, redraws: bool, controls: bool) -> dict[str, PyTree]:
    """Return the parts of a state that `Best.moving` stores."""
    scores = state.trainable.scores if controls else {}
    parts = {"trainable": state.trainable._replace(scores=scores), "model": state.model}
    return parts | ({"weights": state.weights} if redraws else {})


@jax.jit
def _picked(better: Bool[Array | np.ndarray, " run"], now: PyTree, before: PyTree) -> PyTree:
    """Return the arrays `now` for each run whose `better` is True, and `before` for other runs."""

    def pick(new, old):
        return jnp.where(better.reshape(better.shape + (1,) * (new.ndim - better.ndim)), new, old)

    return jax.tree.map(pick, now, before)
