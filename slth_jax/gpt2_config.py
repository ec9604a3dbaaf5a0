"""The shape and settings of a GPT-2, and the names and shapes of its parameters.

The parameters are one flat dictionary. Those of the blocks are stacked along a first axis [b], so
that the blocks are one scan whatever their number. Names and shapes, with d the width, v the
vocabulary and t the longest sequence:

    wte [v, d]   wpe [t, d]   ln_f.gain [d]   ln_f.bias [d]
    h.ln_1.gain [b, d]   h.ln_1.bias [b, d]   h.ln_2.gain [b, d]   h.ln_2.bias [b, d]
    h.attn.q, h.attn.k, h.attn.v, h.attn.o [b, d, d]   and their biases h.attn.q.bias ... [b, d]
    h.mlp.in [b, d, 4d]   h.mlp.in.bias [b, 4d]   h.mlp.out [b, 4d, d]   h.mlp.out.bias [b, d]

Every matrix is applied as ``x @ w``. The output layer is the transposed `wte`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax

from slth_jax import checks

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "gelu": functools.partial(jax.nn.gelu, approximate=True),
}
"""`gelu` is GPT-2's tanh form, called `gelu_new` by Hugging Face; the paper speaks of ReLU."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Shape and settings of a GPT-2; the defaults follow the paper where it speaks.

    Attributes:
      num_blocks: b of the paper.
      width: d; a multiple of `num_heads`.
      num_heads: attention heads; the published models have heads of width 64.
      vocab_size: number of tokens.
      max_length: the longest sequence.
      activation: 'relu' or 'gelu'.
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
        for name in ("num_blocks", "width", "num_heads", "vocab_size", "max_length"):
            checks.integer(name, getattr(self, name), low=1)
        if self.width % self.num_heads:
            raise checks.fail("width", f"a multiple of num_heads = {self.num_heads}", self.width)
        checks.choice("activation", self.activation, ACTIVATIONS)
        checks.choice("embeddings", self.embeddings, ("masked", "learned"))
        checks.choice("gains", self.gains, ("fixed", "learned"))
        checks.number("init_sd", self.init_sd, low=0, open_low=True)
        if self.embedding_sd is not None:
            checks.number("embedding_sd", self.embedding_sd, low=0, open_low=True)

    @property
    def head_width(self) -> int:
        """Return n_K, the width of one head."""
        return self.width // self.num_heads


PRESETS = {
    "tiny": Config(num_blocks=2, width=128, num_heads=2, max_length=256),
    "mini": Config(num_blocks=4, width=512, num_heads=8),
    "small": Config(num_blocks=12, width=768, num_heads=12),
    "medium": Config(num_blocks=24, width=1024, num_heads=16),
}
"""The models of the paper (mini as published under `erwanf/gpt2-mini`) and one for CPUs."""


def preset(name: str, *, width_multiplier: float = 1.0, **settings) -> Config:
    """Return the named config, `width_multiplier` times as wide by more or fewer heads.

    The width of a head stays, as in figure 7 of the paper. `settings` replace other fields.

    Raises:
      ValueError: an unknown name, or a multiplier that gives no whole number of heads.
    """
    base = PRESETS[checks.choice("model", name, PRESETS)]
    heads = base.num_heads * checks.number(
        "width_multiplier", width_multiplier, low=0, open_low=True
    )
    if heads != int(heads):
        allowed = f"a multiple of 1/{base.num_heads} for model {name!r}"
        raise checks.fail("width_multiplier", allowed, width_multiplier)
    return dataclasses.replace(
        base, num_heads=int(heads), width=int(heads) * base.head_width, **settings
    )


def matrix_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the random weight matrices by name."""
    b, d = config.num_blocks, config.width
    return {
        "wte": (config.vocab_size, d),
        "wpe": (config.max_length, d),
        **{f"h.attn.{name}": (b, d, d) for name in "qkvo"},
        "h.mlp.in": (b, d, 4 * d),
        "h.mlp.out": (b, 4 * d, d),
    }


def vector_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the gains and biases by name."""
    b, d = config.num_blocks, config.width
    norms = {f"h.{norm}.{part}": (b, d) for norm in ("ln_1", "ln_2") for part in ("gain", "bias")}
    return {
        **norms,
        **{f"h.attn.{name}.bias": (b, d) for name in "qkvo"},
        "h.mlp.in.bias": (b, 4 * d),
        "h.mlp.out.bias": (b, d),
        "ln_f.gain": (d,),
        "ln_f.bias": (d,),
    }


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


def num_parameters(config: Config) -> int:
    """Return the number of parameters, gains and biases included, the tied `wte` once."""
    shapes = {**matrix_shapes(config), **vector_shapes(config)}
    return sum(math.prod(shape) for shape in shapes.values())


def fan_in(config: Config) -> dict[str, int]:
    """Return the number of inputs of the matrices that are stored with outputs first."""
    return {"wte": config.width, "wpe": config.width}
