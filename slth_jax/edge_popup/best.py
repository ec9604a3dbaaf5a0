"""The best evaluation so far of each run."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int32, Shaped

from slth_jax.edge_popup.scores import State
from slth_jax.types import PyTree


class Best(NamedTuple):
    """The best evaluation of each run; all arrays have a first axis [run].

    Attributes:
      loss, step: the loss and the step of the best evaluation; infinity and 0 before any.
      masks: packed masks by name, one bit per connection.
      moving: the parts of the state that training changes, by the field's name: learned arrays, the
        model's mutable state, weights that are re-drawn, and the weights of controls. Empty if
        these are not kept.
    """

    loss: Float32[np.ndarray, " run"]
    step: Int32[np.ndarray, " run"]
    masks: dict[str, Shaped[Array | np.ndarray, "run bytes"]]
    moving: dict[str, PyTree]

    def updated(self, losses: Shaped[np.ndarray, " run"], step: int, now: "Best") -> "Best":
        """Return for each run the better of this and an evaluation at `step` with arrays `now`."""
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
    """Return the parts of a state that a best evaluation must store besides its masks."""
    scores = state.trainable.scores if controls else {}
    parts = {"trainable": state.trainable._replace(scores=scores), "model": state.model}
    return parts | ({"weights": state.weights} if redraws else {})


@jax.jit
def _picked(better: Bool[Array | np.ndarray, " run"], now: PyTree, before: PyTree) -> PyTree:
    """Return `now` for the runs that got better, `before` for the other runs."""

    def pick(new, old):
        return jnp.where(better.reshape(better.shape + (1,) * (new.ndim - better.ndim)), new, old)

    return jax.tree.map(pick, now, before)
