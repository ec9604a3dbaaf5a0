"""The paper's optimiser: AdamW with linear warm-up and cosine decay."""

import dataclasses
from typing import Any

import jax
import optax
from jaxtyping import Array, Float, Shaped

from slth_jax import checks
from slth_jax.types import ArrayLike, PyTree

VECTORS = {"bias", "scale", "gain"}  # never matrices, whatever their rank


@dataclasses.dataclass(frozen=True)
class Schedule:
    """AdamW with linear warm-up and cosine decay (paper, section 4).

    Attributes:
      steps: the number of optimiser steps, including the warm-up.
      warmup: the number of steps of the linear warm-up, which starts at rate 0.
      final: the last learning rate divided by the highest learning rate; 0.1 in the paper.
      weight_decay: AdamW's weight decay of the scores and of trained matrices; biases and gains do
        not decay. The paper does not state its weight decay. The default, 0.01, is the default of
        AdamW in PyTorch.
      b1, b2: AdamW's decay rates of the first and second moment.
    """

    steps: int
    warmup: int = 0
    final: float = 0.1
    weight_decay: float = 0.01
    b1: float = 0.9
    b2: float = 0.999

    def __post_init__(self):
        checks.integer("steps", self.steps, low=1)
        checks.integer("warmup", self.warmup, low=0, high=self.steps - 1)
        checks.number("final", self.final, low=0, high=1)
        checks.number("weight_decay", self.weight_decay, low=0)

    def rate(self, step: ArrayLike) -> Float[Array, ""]:
        """Return the learning rate of update number `step`, divided by the highest rate."""
        schedule = optax.warmup_cosine_decay_schedule(0.0, 1.0, self.warmup, self.steps, self.final)
        return schedule(step)

    def optimizer(self, learning_rate: ArrayLike) -> optax.GradientTransformationExtraArgs:
        """Return the optimiser; its state stores `learning_rate`, the highest rate.

        Runs of one program may therefore have different learning rates (see
        `optax.inject_hyperparams`).
        """
        return optax.inject_hyperparams(self._adamw)(learning_rate=learning_rate)

    def _adamw(self, learning_rate: ArrayLike) -> optax.GradientTransformation:
        return optax.adamw(
            lambda step: learning_rate * self.rate(step),
            b1=self.b1,
            b2=self.b2,
            weight_decay=self.weight_decay,
            mask=_decays,
        )


def _decays(params: PyTree) -> PyTree:
    """Return whether each array has weight decay; on a gain, decay would shrink the whole layer."""

    def is_matrix(path: tuple[Any, ...], array: Shaped[Array, "..."]) -> bool:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        name = name.removesuffix(".value")  # the suffix of a Flax variable
        return array.ndim >= 2 and name.rpartition(".")[2] not in VECTORS

    return jax.tree_util.tree_map_with_path(is_matrix, params)
