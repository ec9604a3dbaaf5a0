"""The shape of a network of the family, and what its parameters are called.

Letters: b blocks, d width, h query heads, g key/value heads, k and v the widths of a query/key and
of a value head, f the hidden width, m the longest sequence. Every matrix is applied as ``x @ w``;
the parameters of the blocks are stacked along a first axis [b]::

    wte [vocabulary, d]   wpe [m, d]   ln_f.gain, ln_f.bias [d]   unembed [d, outputs]
    h.ln_1.gain, h.ln_1.bias, h.ln_2.gain, h.ln_2.bias [b, d]
    h.attn.q [b, d, h k]   h.attn.k [b, d, g k]   h.attn.v [b, d, g v]   h.attn.o [b, h v, d]
    h.mlp.in, h.mlp.gate [b, d, f]   h.mlp.out [b, f, d]

and the biases of the maps, ``h.attn.q.bias [b, h k]`` and so on. Which of them a network has is
said by the parameters themselves: what is not there is not applied.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax

from slth_jax import checks

Shapes = dict[str, tuple[int, ...]]

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "gelu": functools.partial(jax.nn.gelu, approximate=True),
    "gelu_exact": functools.partial(jax.nn.gelu, approximate=False),
    "silu": jax.nn.silu,
}
"""`gelu` is GPT-2's tanh form, which Hugging Face calls `gelu_new`."""

FACTORS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "linear": lambda x: x,
    "relu": jax.nn.relu,
}
"""What stands between the two factors of a matrix that is given as a product of two."""

NORMS = ("layer", "rms", "none")
POSITIONS = ("learned", "rotary", "none")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Shape and settings of a pre-norm transformer; numbers that are left None are filled in.

    Attributes:
      vocab_size: number of tokens.
      width: d, of the residual stream.
      num_blocks: b.
      num_heads: h.
      num_kv_heads: g, a divisor of h; query head i uses key/value head ``i // (h / g)``. None: h.
      head_width: k, of queries and keys. None: d / h.
      value_width: v. None: k.
      hidden_width: f. None: 4 d.
      max_length: the longest sequence.
      norm: 'layer', 'rms' or 'none'; without a gain among the parameters it has none.
      norm_eps: what is added to the variance.
      positions: 'learned' (added to the embedding), 'rotary' or 'none'.
      rotary: F frequencies, radians a position. A head is the even components of its pairs, then
        the odd ones. Empty: base 10,000.
      rotary_repeat: consecutive pairs that share a frequency; ``F rotary_repeat = k / 2``.
      activation: a name in `ACTIVATIONS`.
      gated: ``act(x gate) * (x in)`` instead of ``act(x in)``.
      causal: a token attends to itself and those before it.
      pad_token: a token that nobody attends to; None for none.
      tied: the output layer is the transposed `wte`; else it is `unembed`.
      logit_scale: of the attention logits. None: 1 / sqrt(k).
      factor: a name in `FACTORS`.
      outputs: number of logits. None: `vocab_size`.
    """

    vocab_size: int
    width: int
    num_blocks: int
    num_heads: int
    num_kv_heads: int = None  # type: ignore[assignment]
    head_width: int = None  # type: ignore[assignment]
    value_width: int = None  # type: ignore[assignment]
    hidden_width: int = None  # type: ignore[assignment]
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
    logit_scale: float = None  # type: ignore[assignment]
    factor: str = "linear"
    outputs: int = None  # type: ignore[assignment]

    def __post_init__(self):
        for name in ("vocab_size", "width", "num_blocks", "num_heads", "max_length"):
            checks.integer(name, getattr(self, name), low=1)
        if self.head_width is None and self.width % self.num_heads:
            raise checks.fail("width", f"a multiple of num_heads = {self.num_heads}", self.width)
        self._fill("num_kv_heads", self.num_heads)
        self._fill("head_width", self.width // self.num_heads)
        self._fill("value_width", self.head_width)
        self._fill("hidden_width", 4 * self.width)
        self._fill("outputs", self.vocab_size)
        for name in ("num_kv_heads", "head_width", "value_width", "hidden_width", "outputs"):
            checks.integer(name, getattr(self, name), low=1)
        self._fill("logit_scale", self.head_width**-0.5)
        if self.num_heads % self.num_kv_heads:
            allowed = f"a divisor of num_heads = {self.num_heads}"
            raise checks.fail("num_kv_heads", allowed, self.num_kv_heads)
        if self.pad_token is not None:
            checks.integer("pad_token", self.pad_token, low=0, high=self.vocab_size - 1)
        checks.number("norm_eps", self.norm_eps, low=0)
        checks.number("logit_scale", self.logit_scale)
        for name, words in (
            ("norm", NORMS),
            ("positions", POSITIONS),
            ("activation", tuple(ACTIVATIONS)),
            ("factor", tuple(FACTORS)),
        ):
            checks.choice(name, getattr(self, name), words)
        if self.tied and self.outputs != self.vocab_size:
            allowed = f"vocab_size = {self.vocab_size} where the output layer is tied"
            raise checks.fail("outputs", allowed, self.outputs)
        self._check_rotary()

    def _fill(self, name: str, value: int | float) -> None:
        if getattr(self, name) is None:
            object.__setattr__(self, name, value)

    def _check_rotary(self) -> None:
        checks.integer("rotary_repeat", self.rotary_repeat, low=1)
        if self.positions != "rotary":
            if self.rotary:
                raise checks.fail("rotary", "empty unless positions = 'rotary'", self.rotary)
            return
        if self.head_width % (2 * self.rotary_repeat):
            allowed = f"a multiple of 2 rotary_repeat = {2 * self.rotary_repeat}"
            raise checks.fail("head_width", f"{allowed} with rotary positions", self.head_width)
        count = self.head_width // (2 * self.rotary_repeat)
        rotary = tuple(float(each) for each in self.rotary) or rotary_frequencies(2 * count)
        if len(rotary) != count:
            allowed = f"head_width / (2 rotary_repeat) = {count} frequencies"
            raise checks.fail("rotary", allowed, len(rotary))
        object.__setattr__(self, "rotary", rotary)


def rotary_frequencies(head_width: int, base: float = 10_000.0) -> tuple[float, ...]:
    """Return ``base^(-2 i / k)``, i = 0 ... k/2 - 1 (Su et al. 2021), in radians a position."""
    return tuple(base ** (-2 * i / head_width) for i in range(head_width // 2))


def matrix_shapes(settings: Settings) -> Shapes:
    """Return the shapes of the matrices by name."""
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
    }
    absent = {"wpe": s.positions != "learned", "h.mlp.gate": not s.gated, "unembed": s.tied}
    return {name: shape for name, shape in shapes.items() if not absent.get(name, False)}


def vector_shapes(settings: Settings) -> Shapes:
    """Return the shapes of the gains, shifts and biases that a network may have, by name."""
    s, b, d = settings, settings.num_blocks, settings.width
    shapes: Shapes = {}
    parts = {"layer": ("gain", "bias"), "rms": ("gain",), "none": ()}[s.norm]
    for norm in ("h.ln_1", "h.ln_2"):
        shapes |= {f"{norm}.{part}": (b, d) for part in parts}
    for name, shape in matrix_shapes(s).items():
        if name.startswith("h."):
            shapes[f"{name}.bias"] = (b, shape[-1])
    shapes |= {f"ln_f.{part}": (d,) for part in parts}
    if not s.tied:
        shapes["unembed.bias"] = (s.outputs,)
    return shapes
