"""The settings of a transformer, and the names and shapes of its parameters.

The letters in shapes are: b blocks, d width, h query heads, g key/value heads, k the width of a
query and key head, v the width of a value head, f the hidden width, m the longest sequence. Every
matrix is applied as ``x @ w``. The parameters of the blocks are stacked along a first axis [b]::

    wte [vocabulary, d]   wpe [m, d]   ln_f.gain, ln_f.bias [d]   unembed [d, outputs] wtt [token
    types, d]   ln_e.gain, ln_e.bias [d] (after the embeddings) h.ln_1.gain, h.ln_1.bias,
    h.ln_2.gain, h.ln_2.bias [b, d] h.attn.q [b, d, h k]   h.attn.k [b, d, g k]   h.attn.v [b, d, g
    v]   h.attn.o [b, h v, d] h.mlp.in, h.mlp.gate [b, d, f]   h.mlp.out [b, f, d]

Linear maps may also have biases, such as ``h.attn.q.bias [b, h k]``. Gains, shifts and biases are
optional: if one is absent, the step that would use it is skipped.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax

from slth_jax import checks

Shapes = dict[str, tuple[int, ...]]

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "gelu": functools.partial(jax.nn.gelu, approximate=True),
    "gelu_exact": functools.partial(jax.nn.gelu, approximate=False),
    "silu": jax.nn.silu,
}
"""Activations by name. `gelu` is GPT-2's tanh form, which Hugging Face calls `gelu_new`."""

FACTORS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "linear": lambda x: x,
    "relu": jax.nn.relu,
}
"""Functions between the two factors of a matrix that is given as a product of two."""

NORMS = ("layer", "rms", "none")
POSITIONS = ("learned", "rotary", "none")


@dataclasses.dataclass(frozen=True)
class Settings:
    """All settings of a transformer; `make_settings` derives most of them from four sizes.

    Networks with equal settings compute the same function of their parameters.

    Attributes:
      vocab_size: the number of different tokens.
      width: d, the width of the residual stream.
      num_blocks: b, the number of blocks.
      num_heads: h, the number of query heads.
      num_kv_heads: g, the number of key/value heads, a divisor of h; query head i uses key/value
        head ``i // (h / g)``.
      head_width: k, the width of a query and key head.
      value_width: v, the width of a value head.
      hidden_width: f, the hidden width of the fully connected layers.
      outputs: the number of outputs per token: logits or, if `states` is true, state entries.
      logit_scale: the factor of the attention logits, usually ``1 / sqrt(k)``.
      max_length: the largest number of tokens in a sequence.
      norm: the kind of normalisation: 'layer', 'rms' or 'none'.
      norm_eps: the number that is added to the variance.
      positions: the kind of positions: 'learned' (added to the embedding), 'rotary' or 'none'.
      rotary: the F rotary frequencies in radians per position; empty unless positions are rotary. A
        head contains the even components of all rotated pairs, followed by the odd components.
      rotary_repeat: the number of consecutive pairs that share a frequency;
        ``F rotary_repeat = k / 2``.
      activation: the name of the activation function, from `ACTIVATIONS`.
      gated: whether layers compute ``act(x gate) * (x in)`` instead of ``act(x in)``.
      causal: whether each token attends only to itself and to earlier tokens.
      pad_token: the padding token, to which no token attends; None if there is none.
      tied: whether the output layer is the transposed `wte`; if not, it is `unembed`.
      factor: the name of the function between the two factors of a matrix, from `FACTORS`.
      post_norm: whether norms follow the residual sums, ``norm(x + f(x))`` as in BERT; if false,
        norms precede attention and fully connected layers, ``x + f(norm(x))``.
      states: whether the outputs are the states of the last block, without a final norm or an
        output layer.
      token_types: the number of token types; the row of `wtt` for a token's type is added to the
        embedding.
      embedding_norm: whether the sum of the embeddings is normalised (`ln_e`).
    """

    vocab_size: int
    width: int
    num_blocks: int
    num_heads: int
    num_kv_heads: int
    head_width: int
    value_width: int
    hidden_width: int
    outputs: int
    logit_scale: float
    max_length: int = 1024
    norm: str = "layer"
    norm_eps: float = 1e-5
    positions: str = "learned"
    rotary: tuple[float, ...] = ()
    rotary_repeat: int = 1
    activation: str = "gelu"
    gated: bool = False
    causal: bool = True
    pad_token: int | None = None
    tied: bool = True
    factor: str = "linear"
    post_norm: bool = False
    states: bool = False
    token_types: int = 0
    embedding_norm: bool = False

    def __post_init__(self):
        for name in (
            "vocab_size", "width", "num_blocks", "num_heads", "num_kv_heads", "head_width",
            "value_width", "hidden_width", "outputs", "max_length", "rotary_repeat",
        ):  # fmt: skip
            checks.integer(name, getattr(self, name), low=1)
        if self.num_heads % self.num_kv_heads:
            allowed = f"a divisor of num_heads = {self.num_heads}"
            raise checks.fail("num_kv_heads", allowed, self.num_kv_heads)
        if self.pad_token is not None:
            checks.integer("pad_token", self.pad_token, low=0, high=self.vocab_size - 1)
        checks.number("norm_eps", self.norm_eps, low=0)
        checks.number("logit_scale", self.logit_scale)
        checks.choice("norm", self.norm, NORMS)
        checks.choice("positions", self.positions, POSITIONS)
        checks.choice("activation", self.activation, ACTIVATIONS)
        checks.choice("factor", self.factor, FACTORS)
        if self.tied and self.outputs != self.vocab_size:
            allowed = f"vocab_size = {self.vocab_size} if the output layer is tied"
            raise checks.fail("outputs", allowed, self.outputs)
        if self.states and (self.tied or self.outputs != self.width):
            allowed = f"width = {self.width}, and tied False, if the outputs are states"
            raise checks.fail("outputs", allowed, f"{self.outputs}, tied {self.tied}")
        checks.integer("token_types", self.token_types, low=0)
        if self.positions == "rotary":
            count = _num_frequencies(self.head_width, self.rotary_repeat)
            if len(self.rotary) != count:
                allowed = f"head_width / (2 rotary_repeat) = {count} frequencies"
                raise checks.fail("rotary", allowed, len(self.rotary))
            for frequency in self.rotary:
                checks.number("rotary", frequency)
        elif self.rotary:
            raise checks.fail("rotary", "empty unless positions = 'rotary'", self.rotary)


def make_settings(
    *, vocab_size: int, width: int, num_blocks: int, num_heads: int, **options: Any
) -> Settings:
    """Return settings with the usual proportions, unless `options` override them.

    The defaults are ``g = h``, ``k = d / h``, ``v = k``, ``f = 4 d``, ``outputs = vocab_size``,
    ``logit_scale = 1 / sqrt(k)``, and rotary frequencies of base 10,000. If `states` is true,
    ``outputs = d`` and the output layer is not tied. An option that is given as None gets its
    default. To change the width of existing settings, call this function again:
    `dataclasses.replace` would not update the settings that depend on the width.

    Raises:
      ValueError: no network can have these settings; the error message names the first wrong
        setting.
    """
    given = {name: value for name, value in options.items() if value is not None}
    checks.integer("num_heads", num_heads, low=1)
    checks.integer("width", width, low=1)
    if "head_width" not in given and width % num_heads:
        raise checks.fail("width", f"a multiple of num_heads = {num_heads}", width)
    head_width = checks.integer("head_width", given.get("head_width", width // num_heads), low=1)
    derived: dict[str, Any] = {
        "num_kv_heads": num_heads,
        "head_width": head_width,
        "value_width": head_width,
        "hidden_width": 4 * width,
        "outputs": vocab_size,
        "logit_scale": head_width**-0.5,
    }
    if given.get("states"):
        derived |= {"outputs": width, "tied": False}
    if given.get("positions") == "rotary":
        repeat = checks.integer("rotary_repeat", given.get("rotary_repeat", 1), low=1)
        derived["rotary"] = rotary_frequencies(2 * _num_frequencies(head_width, repeat))
    return Settings(
        vocab_size=vocab_size,
        width=width,
        num_blocks=num_blocks,
        num_heads=num_heads,
        **derived | given,
    )


def rotary_frequencies(head_width: int, base: float = 10_000.0) -> tuple[float, ...]:
    """Return ``base^(-2 i / k)``, i = 0 ... k/2 - 1 (Su et al. 2021), in radians per position."""
    return tuple(base ** (-2 * i / head_width) for i in range(head_width // 2))


def matrix_shapes(settings: Settings) -> Shapes:
    """Return a dict from the name of each matrix to its shape."""
    s, b, d = settings, settings.num_blocks, settings.width
    shapes: Shapes = {
        "wte": (s.vocab_size, d),
        "wpe": (s.max_length, d),
        "h.attn.q": (b, d, s.num_heads * s.head_width),
        "h.attn.k": (b, d, s.num_kv_heads * s.head_width),
        "h.attn.v": (b, d, s.num_kv_heads * s.value_width),
        "h.attn.o": (b, s.num_heads * s.value_width, d),
        "h.mlp.in": (b, d, s.hidden_width),
        "h.mlp.out": (b, s.hidden_width, d),
        "h.mlp.gate": (b, d, s.hidden_width),
        "unembed": (d, s.outputs),
        "wtt": (s.token_types, d),
    }
    absent = {
        "wpe": s.positions != "learned",
        "h.mlp.gate": not s.gated,
        "unembed": s.tied or s.states,
        "wtt": s.token_types == 0,
    }
    return {name: shape for name, shape in shapes.items() if not absent.get(name, False)}


def vector_shapes(settings: Settings) -> Shapes:
    """Return a dict from name to shape, for all gains, shifts and biases a network may have."""
    s, b, d = settings, settings.num_blocks, settings.width
    shapes: Shapes = {}
    parts = {"layer": ("gain", "bias"), "rms": ("gain",), "none": ()}[s.norm]
    for norm in ("h.ln_1", "h.ln_2"):
        shapes |= {f"{norm}.{part}": (b, d) for part in parts}
    for name, shape in matrix_shapes(s).items():
        if name.startswith("h."):
            shapes[f"{name}.bias"] = (b, shape[-1])
    for norm, present in (("ln_f", not s.states), ("ln_e", s.embedding_norm)):
        shapes |= {f"{norm}.{part}": (d,) for part in parts if present}
    if not s.tied and not s.states:
        shapes["unembed.bias"] = (s.outputs,)
    return shapes


def _num_frequencies(head_width: int, repeat: int) -> int:
    """Return ``k / (2 rotary_repeat)``, the number of rotary frequencies."""
    if head_width % (2 * repeat):
        allowed = f"a multiple of 2 rotary_repeat = {2 * repeat} with rotary positions"
        raise checks.fail("head_width", allowed, head_width)
    return head_width // (2 * repeat)
