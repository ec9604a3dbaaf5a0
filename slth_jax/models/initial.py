"""Initial weights of GPT-2 and of Llama."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from slth_jax import checks
from slth_jax.models.settings import Settings, matrix_shapes, vector_shapes
from slth_jax.types import ArrayLike, Key

MAPS = ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.in", "mlp.out", "mlp.gate", "unembed")
# The index of a matrix in this list is folded into its key, so the list must never be reordered.
_PLACES = (
    "wte", "wpe", "h.attn.q", "h.attn.k", "h.attn.v", "h.attn.o", "h.mlp.in", "h.mlp.out",
    "h.mlp.gate", "unembed", "wtt",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Initial:
    """The distribution of a network's initial weights.

    Attributes:
      sd: the standard deviation of all matrix entries; 0.02 in GPT-2 and Llama.
      embedding_sd: the standard deviation of the entries of `wte`, `wpe` and `wtt`; None for the
        value of `sd`.
      residual: whether `h.attn.o` and `h.mlp.out` are multiplied by ``(2 b)^(-1/2)``, where b is
        the number of blocks, as in GPT-2.
      biases: the names of the maps that have a bias, from `MAPS`.
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


def initialise(
    key: Key,
    settings: Settings,
    initial: Initial = GPT2,
    *,
    qk_scale: ArrayLike = 1.0,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> dict[str, Array]:
    """Draw the initial weights, with query and key weights multiplied by `qk_scale`.

    Entries are ``N(0, sd^2)``, see `Initial`; gains are 1, shifts and biases 0. The key of a matrix
    depends only on the matrix's name, so the entries do not depend on the other matrices. Do not
    call this function inside a compiled function: XLA could then change the last bits of the
    weights.

    Args:
      key: a typed PRNG key.
      settings: the network.
      initial: the distribution of the weights.
      qk_scale: the factor of query and key weights, which may be traced; the paper proposes
        ``n_K^(1/4)``.
      dtype: the dtype of the weights.

    Raises:
      ValueError: an argument has a wrong type.
    """
    checks.record("settings", settings, Settings)
    checks.record("initial", initial, Initial)
    number = isinstance(qk_scale, (int, float))
    scale = checks.number("qk_scale", qk_scale) if number else qk_scale
    scale = checks.array("qk_scale", np.asarray(scale) if number else scale, ndim=0)
    return _initialise(checks.key("key", key), settings, initial, scale, jnp.dtype(dtype))


@functools.partial(jax.jit, static_argnames=("settings", "initial", "dtype"))
def _initialise(
    key: Key, settings: Settings, initial: Initial, qk_scale: Array, dtype: Any
) -> dict[str, Array]:
    embedding = initial.sd if initial.embedding_sd is None else initial.embedding_sd
    residual = initial.sd / math.sqrt(2 * settings.num_blocks) if initial.residual else initial.sd
    sds = {
        "wte": embedding,
        "wpe": embedding,
        "wtt": embedding,
        "h.attn.o": residual,
        "h.mlp.out": residual,
    }
    params = {}
    for name, shape in matrix_shapes(settings).items():
        normal = jax.random.normal(jax.random.fold_in(key, _PLACES.index(name)), shape, dtype)
        params[name] = normal * jnp.asarray(sds.get(name, initial.sd), dtype)
        if name in ("h.attn.q", "h.attn.k"):
            params[name] *= jnp.asarray(qk_scale, dtype)
    for name, shape in vector_shapes(settings).items():
        map_name = name.removeprefix("h.").removesuffix(".bias")
        if map_name not in MAPS or map_name in initial.biases:
            params[name] = jnp.full(shape, float(name.endswith("gain")), dtype)
    return params


def num_parameters(settings: Settings, initial: Initial = GPT2) -> int:
    """Return the number of parameters, including gains and biases; a tied `wte` counts once."""
    shapes = jax.eval_shape(lambda: initialise(jax.random.key(0), settings, initial))
    return sum(math.prod(array.shape) for array in shapes.values())
