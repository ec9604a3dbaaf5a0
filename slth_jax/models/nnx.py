"""The Flax face of the family: the same functions around parameters that Flax keeps."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from slth_jax.models import decoder
from slth_jax.models.settings import Settings
from slth_jax.types import Array, ArrayLike


class Decoder(nnx.Module):
    """A transformer of the family as a Flax NNX module.

    Args:
      params: its parameters by name, as `models.initialise` draws or `models.weights` reads them;
        each becomes an `nnx.Param` in `params`.
      settings: its shape.
      dtype: of the matrix products.
    """

    def __init__(
        self,
        params: Mapping[str, Array],
        settings: Settings,
        *,
        dtype: jax.typing.DTypeLike = jnp.float32,
    ):
        self.settings = settings
        self.dtype = dtype
        self.params = nnx.Dict({name: nnx.Param(value) for name, value in params.items()})

    def arrays(self) -> dict[str, Array]:
        """Return the parameters as the pure functions of `models` take them."""
        return {name: param[...] for name, param in self.params.items()}

    def __call__(self, tokens: ArrayLike) -> Array:
        """Return the logits `[n, t, v]` of tokens `[n, t]` (see `models.apply`)."""
        return decoder.apply(self.arrays(), tokens, self.settings, dtype=self.dtype)

    def loss(self, tokens: ArrayLike) -> Array:
        """Return the mean cross-entropy of tokens `[n, t + 1]` (see `models.loss`)."""
        return decoder.loss(self.arrays(), tokens, self.settings, dtype=self.dtype)
