"""GPT-2 in Flax NNX: frozen random source weights, and scores apart from them.

gpt2_config   shape, settings, presets; names and shapes of the parameters
gpt2_core     `init`, `apply`, `loss` as pure functions on named arrays
gpt2          the Flax module, and the names above under one roof

Train it with plain JAX transformations around the split state::

    graphdef, scores, frozen = nnx.split(model, nnx.Param, nnx.Variable)

    @jax.jit
    def gradient(scores, frozen, tokens):
        def loss(scores):
            return nnx.merge(graphdef, scores, frozen).loss(tokens)
        return jax.grad(loss)(scores)
"""

import jax
import jax.numpy as jnp
from flax import nnx

from slth_jax import edge_popup
from slth_jax.gpt2_config import (
    ACTIVATIONS,
    PRESETS,
    Config,
    fan_in,
    learned_names,
    masked_names,
    matrix_shapes,
    num_parameters,
    paper_qk_scale,
    preset,
    vector_shapes,
)
from slth_jax.gpt2_core import Params, apply, init, loss, source
from slth_jax.types import Array, ArrayLike, Key

__all__ = [
    "ACTIVATIONS",
    "GPT2",
    "PRESETS",
    "Config",
    "Frozen",
    "Params",
    "Score",
    "apply",
    "fan_in",
    "init",
    "learned_names",
    "loss",
    "masked_names",
    "matrix_shapes",
    "num_parameters",
    "paper_qk_scale",
    "preset",
    "source",
    "start",
    "vector_shapes",
]

# The key of the scores is folded from the run's key with this, far from the matrices' own places.
_SCORES = 1 << 20


class Frozen(nnx.Variable):
    """A source weight: random, and never trained."""


class Score(nnx.Param):
    """The scores of a matrix: what training moves."""


def start(
    key: Key,
    config: Config,
    *,
    qk_scale: ArrayLike = 1.0,
    variant: edge_popup.Variant = edge_popup.VARIANTS["ramanujan"],
) -> tuple[Params, edge_popup.Trainable]:
    """Return the source weights and what trains on them: scores, and parameters set to learn.

    The weights are `init(key, config, qk_scale=qk_scale)`, bit for bit, so that a ticket is the
    run's key, the config and the masks.
    """
    weights = init(key, config, qk_scale=qk_scale)
    learned = {name: weights.pop(name) for name in learned_names(config)}
    matrices = {name: weights[name] for name in masked_names(config)}
    scores = edge_popup.init_scores(
        jax.random.fold_in(key, _SCORES), matrices, variant, fan_in=fan_in(config)
    )
    return weights, edge_popup.Trainable(scores, learned)


class GPT2(nnx.Module):
    """GPT-2 under masks: `weights` are `Frozen` (or Param where learned), `scores` are `Score`.

    Args:
      key: a typed PRNG key.
      config: the model.
      keep: fraction of each matrix that is kept; calls may give another, traced one.
      qk_scale: factor of the query and key weights; may be traced.
      variant: the form of edge-popup.
      dtype: of the matrix products.
    """

    def __init__(
        self,
        key: Key,
        config: Config,
        *,
        keep: float = 0.3,
        qk_scale: ArrayLike = 1.0,
        variant: edge_popup.Variant = edge_popup.VARIANTS["ramanujan"],
        dtype: jax.typing.DTypeLike = jnp.float32,
    ):
        self.config = config
        self.keep = keep
        self.variant = variant
        self.dtype = dtype
        weights, trainable = start(key, config, qk_scale=qk_scale, variant=variant)
        self.weights = nnx.Dict({name: Frozen(value) for name, value in weights.items()})
        self.scores = nnx.Dict({name: Score(value) for name, value in trainable.scores.items()})
        self.learned = nnx.Dict(
            {name: nnx.Param(value) for name, value in trainable.learned.items()}
        )

    def ticket(self, keep: ArrayLike | None = None) -> Params:
        """Return the parameters in use, weights times masks, differentiable in the scores."""
        trainable = edge_popup.Trainable(_arrays(self.scores), _arrays(self.learned))
        fraction = self.keep if keep is None else keep
        return edge_popup.ticket(_arrays(self.weights), trainable, fraction, self.variant)

    def __call__(self, tokens: ArrayLike, keep: ArrayLike | None = None) -> Array:
        """Return the logits `[n, t, v]` of tokens `[n, t]` (see `apply`)."""
        return apply(self.ticket(keep), tokens, self.config, dtype=self.dtype)

    def loss(self, tokens: ArrayLike, keep: ArrayLike | None = None) -> Array:
        """Return the mean cross-entropy of tokens `[n, t + 1]` (see `loss`)."""
        return loss(self.ticket(keep), tokens, self.config, dtype=self.dtype)


def _arrays(variables: nnx.Dict) -> Params:
    return {name: variable[...] for name, variable in variables.items()}
