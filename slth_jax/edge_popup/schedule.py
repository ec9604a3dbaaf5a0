"""The paper's optimiser: AdamW with linear warm-up and cosine decay."""

import dataclasses
from typing import Any

import jax
import optax
from jaxtyping import Array, Float, Shaped

from slth_jax import checks
from slth_jax.types import ArrayLike, PyTree

VECTORS = {"bias", "scale", "gain"}  # names of parameters that are no matrices, whatever their rank


@dataclasses.dataclass(frozen=True)
class Schedule:
    """AdamW with linear warm-up and cosine decay (paper, section 4).

    Attributes:
      steps: optimiser steps, warm-up included.
      warmup: steps of the linear warm-up from 0.
      final: last learning rate as a fraction of the highest; 0.1 in the paper.
      weight_decay: AdamW's decay of scores and of matrices that train; biases and gains do not
        decay. The paper does not state a value; the default is PyTorch's.
      b1, b2: decay rates of the two moments.
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
        """Return the learning rate before `step`'s update as a fraction of the highest."""
        schedule = optax.warmup_cosine_decay_schedule(0.0, 1.0, self.warmup, self.steps, self.final)
        return schedule(step)

    def optimizer(self, learning_rate: ArrayLike) -> optax.GradientTransformationExtraArgs:
        """Return the optimiser; its state stores `learning_rate`, the highest rate.

        So runs of one program may have different rates (see `optax.inject_hyperparams`).
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
    """Return which arrays decay; the decay of a gain would scale its whole layer down."""

    def is_matrix(path: tuple[Any, ...], array: Shaped[Array, "..."]) -> bool:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        name = name.removesuffix(".value")  # of a Flax variable
        return array.ndim >= 2 and name.rpartition(".")[2] not in VECTORS

    return jax.tree_util.tree_map_with_path(is_matrix, params)
