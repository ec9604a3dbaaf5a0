"""Scores as Flax NNX variables: a model whose parameters are weights times masks."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from slth_jax.edge_popup import scores as edge
from slth_jax.edge_popup.scores import Trainable, Variant
from slth_jax.models import decoder
from slth_jax.models.settings import Settings
from slth_jax.types import Array, ArrayLike


class Frozen(nnx.Variable):
    """A source weight: random, and never trained."""


class Score(nnx.Param):
    """The scores of a matrix: what training moves."""


class Masked(nnx.Module):
    """Named arrays under masks: `weights` are `Frozen`, `scores` `Score`, `learned` Params.

    Args:
      weights, trainable: the source, and scores and parameters that learn on it.
      keep: fraction that is kept; calls may give another, traced one.
      variant: the form of edge-popup.
    """

    def __init__(
        self, weights: Mapping[str, Array], trainable: Trainable, *, keep: float, variant: Variant
    ):
        self.keep = keep
        self.variant = variant
        self.weights = nnx.Dict({name: Frozen(value) for name, value in weights.items()})
        self.scores = nnx.Dict({name: Score(value) for name, value in trainable.scores.items()})
        self.learned = nnx.Dict(
            {name: nnx.Param(value) for name, value in trainable.learned.items()}
        )

    def ticket(self, keep: ArrayLike | None = None) -> dict[str, Array]:
        """Return the parameters in use, weights times masks, differentiable in the scores."""
        trainable = Trainable(_arrays(self.scores), _arrays(self.learned))
        fraction = self.keep if keep is None else keep
        return edge.ticket(_arrays(self.weights), trainable, fraction, self.variant)


class MaskedDecoder(Masked):
    """A transformer of the `models` family under masks; `dtype` is that of matrix products."""

    def __init__(
        self,
        weights: Mapping[str, Array],
        trainable: Trainable,
        settings: Settings,
        *,
        keep: float,
        variant: Variant,
        dtype: jax.typing.DTypeLike = jnp.float32,
    ):
        super().__init__(weights, trainable, keep=keep, variant=variant)
        self.settings = settings
        self.dtype = dtype

    def __call__(self, tokens: ArrayLike, keep: ArrayLike | None = None) -> Array:
        """Return the logits `[n, t, v]` of tokens `[n, t]` (see `models.apply`)."""
        return decoder.apply(self.ticket(keep), tokens, self.settings, dtype=self.dtype)

    def loss(self, tokens: ArrayLike, keep: ArrayLike | None = None) -> Array:
        """Return the mean cross-entropy of tokens `[n, t + 1]` (see `models.loss`)."""
        return decoder.loss(self.ticket(keep), tokens, self.settings, dtype=self.dtype)


def _arrays(variables: nnx.Dict) -> dict[str, Array]:
    return {name: variable[...] for name, variable in variables.items()}
