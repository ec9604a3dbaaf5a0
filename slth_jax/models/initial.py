"""Initial weights: GPT-2's draw, which is also that of Llama but for its settings."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from slth_jax import checks
from slth_jax.models.settings import Settings, matrix_shapes, vector_shapes
from slth_jax.types import Array, ArrayLike, Key

MAPS = ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.in", "mlp.out", "mlp.gate", "unembed")
# The place of a matrix, which its key is folded from; never renumber.
_PLACES = (
    "wte", "wpe", "h.attn.q", "h.attn.k", "h.attn.v", "h.attn.o", "h.mlp.in", "h.mlp.out",
    "h.mlp.gate", "unembed",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Initial:
    """How a network starts.

    Attributes:
      sd: standard deviation of the entries of the matrices; 0.02 in GPT-2 and Llama.
      embedding_sd: of `wte` and `wpe`; None for `sd`.
      residual: entries of `h.attn.o` and `h.mlp.out` are further times ``(2 b)^(-1/2)`` (GPT-2).
      biases: the maps that have a bias, names in `MAPS`.
    """

    sd: float = 0.02
    embedding_sd: float | None = None
    residual: bool = True
    biases: tuple[str, ...] = MAPS[:6]

    def __post_init__(self):
        checks.number("sd", self.sd, low=0, open_low=True)
        if self.embedding_sd is not None:
            checks.number("embedding_sd", self.embedding_sd, low=0, open_low=True)
        for name in self.biases:
            checks.choice("biases", name, MAPS)


GPT2 = Initial()
LLAMA = Initial(residual=False, biases=())


@functools.partial(jax.jit, static_argnames=("settings", "initial", "dtype"))
def initialise(
    key: Key,
    settings: Settings,
    initial: Initial = GPT2,
    *,
    qk_scale: ArrayLike = 1.0,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> dict[str, Array]:
    """Draw the initial weights, with query and key weights multiplied by `qk_scale`.

    Entries are ``N(0, sd^2)``, see `Initial`; gains are 1, shifts and biases 0. Each matrix has
    its own key, folded from its place in a fixed list, so the draw of one does not depend on the
    others. Called outside of other compiled functions it is the same program every time, so the
    same bits.

    Args:
      key: a typed PRNG key.
      settings: the shape.
      initial: sizes, and which biases there are.
      qk_scale: may be traced; ``n_K^(1/4)`` in the paper's proposal.
      dtype: of the weights.
    """
    embedding = initial.sd if initial.embedding_sd is None else initial.embedding_sd
    residual = initial.sd / math.sqrt(2 * settings.num_blocks) if initial.residual else initial.sd
    sds = {"wte": embedding, "wpe": embedding, "h.attn.o": residual, "h.mlp.out": residual}
    params = {}
    for name, shape in matrix_shapes(settings).items():
        drawn = jax.random.normal(jax.random.fold_in(key, _PLACES.index(name)), shape, dtype)
        params[name] = drawn * jnp.asarray(sds.get(name, initial.sd), dtype)
        if name in ("h.attn.q", "h.attn.k"):
            params[name] *= jnp.asarray(qk_scale, dtype)
    for name, shape in vector_shapes(settings).items():
        of_map = name.removeprefix("h.").removesuffix(".bias")
        if of_map not in MAPS or of_map in initial.biases:
            params[name] = jnp.full(shape, float(name.endswith("gain")), dtype)
    return params


def num_parameters(settings: Settings, initial: Initial = GPT2) -> int:
    """Return the number of parameters, gains and biases included, a tied `wte` once."""
    shapes = jax.eval_shape(lambda: initialise(jax.random.key(0), settings, initial))
    return sum(math.prod(each.shape) for each in shapes.values())
