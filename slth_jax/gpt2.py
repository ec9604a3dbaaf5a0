"""GPT-2 under masks: the `models` family with its settings, initialisation and masking in one.

`Config` is the record of the experiments and of tickets; the functions hand its parts to `models`
and to `edge_popup`. As a Flax NNX module, train it with plain JAX transformations around the split
state::

    graphdef, scores, frozen = nnx.split(model, nnx.Param, nnx.Variable)

    @jax.jit
    def gradient(scores, frozen, tokens):
        def loss(scores):
            return nnx.merge(graphdef, scores, frozen).loss(tokens)
        return jax.grad(loss)(scores)
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from slth_jax import checks, edge_popup
from slth_jax.edge_popup.nnx import Frozen, MaskedDecoder, Score
from slth_jax.models import decoder, initial, presets, settings
from slth_jax.models.settings import ACTIVATIONS
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

Params = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Config:
    """Shape and settings of a GPT-2; the defaults follow the paper where it speaks.

    Attributes:
      num_blocks: b of the paper.
      width: d; a multiple of `num_heads`.
      num_heads: attention heads; the published models have heads of width 64.
      vocab_size: number of tokens.
      max_length: the longest sequence.
      activation: a name in `ACTIVATIONS`.
      embeddings: 'masked' (random and frozen, with scores) or 'learned'.
      gains: 'fixed' (gains 1 and biases 0 stay) or 'learned' (all gains and biases train).
      init_sd: standard deviation of the random weights; 0.02 in GPT-2.
      embedding_sd: standard deviation of `wte` and `wpe`; None for `init_sd`. In narrow models a
        tied random embedding of GPT-2's size cannot make the logits large enough.
    """

    num_blocks: int
    width: int
    num_heads: int
    vocab_size: int = 50257
    max_length: int = 1024
    activation: str = "relu"
    embeddings: str = "masked"
    gains: str = "fixed"
    init_sd: float = 0.02
    embedding_sd: float | None = None

    def __post_init__(self):
        checks.choice("embeddings", self.embeddings, ("masked", "learned"))
        checks.choice("gains", self.gains, ("fixed", "learned"))
        checks.number("init_sd", self.init_sd, low=0, open_low=True)
        _ = self.settings, self.initial  # they look at the rest

    @property
    def settings(self) -> settings.Settings:
        """Return the shape."""
        return settings.make_settings(
            vocab_size=self.vocab_size,
            width=self.width,
            num_blocks=self.num_blocks,
            num_heads=self.num_heads,
            max_length=self.max_length,
            activation=self.activation,
        )

    @property
    def initial(self) -> initial.Initial:
        """Return the initialisation."""
        return initial.Initial(sd=self.init_sd, embedding_sd=self.embedding_sd)

    @property
    def head_width(self) -> int:
        """Return n_K, the width of one head."""
        return self.width // self.num_heads


def of(shape: settings.Settings, **rest: Any) -> Config:
    """Return the config of a GPT-2's settings; `rest` are its other fields."""
    names = ("num_blocks", "width", "num_heads", "vocab_size", "max_length", "activation")
    config = Config(**{name: getattr(shape, name) for name in names}, **rest)
    for name, value in vars(config.settings).items():
        if getattr(shape, name) != value:
            raise checks.fail(name, repr(value), repr(getattr(shape, name)))
    return config


PRESETS = {
    name: of(shape)
    for name, (shape, initial_) in presets.PRESETS.items()
    if initial_ == initial.GPT2
}
"""The models of the paper (mini as published under `erwanf/gpt2-mini`) and two for CPUs."""


def preset(name: str, *, width_multiplier: float = 1.0, **fields: Any) -> Config:
    """Return the named config, `width_multiplier` times as wide (see `models.preset`).

    `fields` replace other fields of `Config`.
    """
    checks.choice("model", name, PRESETS)
    shape, _ = presets.preset(name, width_multiplier=width_multiplier)
    return dataclasses.replace(of(shape), **fields)


def init(
    key: Key,
    config: Config,
    *,
    qk_scale: ArrayLike = 1.0,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> Params:
    """Draw GPT-2's initial weights (see `models.initialise`)."""
    return initial.initialise(key, config.settings, config.initial, qk_scale=qk_scale, dtype=dtype)


def source(key: Key, *, qk_scale: float = 1.0, **fields: Any) -> Params:
    """Return `init` of the config with these `fields`: the source as tickets name it."""
    return init(key, Config(**fields), qk_scale=qk_scale)


def apply(params: Params, tokens: ArrayLike, config: Config, **options: Any) -> Array:
    """Return the logits `[n, t, v]` of tokens `[n, t]` (see `models.apply`)."""
    return decoder.apply(params, tokens, config.settings, **options)


def loss(params: Params, tokens: ArrayLike, config: Config, **options: Any) -> Array:
    """Return the mean cross-entropy of tokens `[n, t + 1]` (see `models.loss`)."""
    return decoder.loss(params, tokens, config.settings, **options)


def matrix_shapes(config: Config) -> settings.Shapes:
    """Return the shapes of the random weight matrices by name."""
    return settings.matrix_shapes(config.settings)


def vector_shapes(config: Config) -> settings.Shapes:
    """Return the shapes of the gains and biases by name."""
    return settings.vector_shapes(config.settings)


def num_parameters(config: Config) -> int:
    """Return the number of parameters, gains and biases included, the tied `wte` once."""
    return initial.num_parameters(config.settings, config.initial)


def paper_qk_scale(config: Config) -> float:
    """Return ``n_K^(1/4)``, the paper's factor for query and key weights; 2.83 at width 64."""
    return config.head_width**0.25


def learned_names(config: Config) -> tuple[str, ...]:
    """Return the names of the parameters that train as they are, besides the scores."""
    names = ("wte", "wpe") if config.embeddings == "learned" else ()
    return names + (tuple(vector_shapes(config)) if config.gains == "learned" else ())


def masked_names(config: Config) -> tuple[str, ...]:
    """Return the names of the matrices that carry a mask."""
    return tuple(name for name in matrix_shapes(config) if name not in learned_names(config))


def fan_in(config: Config) -> dict[str, int]:
    """Return the number of inputs of the matrices that are stored with outputs first."""
    return {"wte": config.width, "wpe": config.width}


# The key of the scores is folded from the run's key with this, far from the matrices' own places.
_SCORES = 1 << 20


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


class GPT2(MaskedDecoder):
    """GPT-2 under masks: `weights` are `Frozen`, `scores` are `Score`, what learns is a Param.

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
        weights, trainable = start(key, config, qk_scale=qk_scale, variant=variant)
        super().__init__(
            weights, trainable, config.settings, keep=keep, variant=variant, dtype=dtype
        )
