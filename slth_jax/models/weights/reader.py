"""Weights read a block at a time: memory does not grow with the number of layers."""

import dataclasses
from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np

from slth_jax.models.settings import Settings, matrix_shapes, vector_shapes
from slth_jax.storage import Damaged
from slth_jax.types import Array

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, repr=False)
class Reader:
    """A weight file that is open: its settings, and its arrays on demand.

    Attributes:
      path: what was opened, for messages.
      settings: the network.
      num_bytes: of its weights in float32, each counted once.
      read_ends: returns the arrays outside the blocks.
      read_block: returns those of one block, by its number.
    """

    path: str
    settings: Settings
    num_bytes: int
    read_ends: Callable[[], Mapping[str, np.ndarray]]
    read_block: Callable[[int], Mapping[str, np.ndarray]]

    def __repr__(self) -> str:
        s = self.settings
        return (
            f"Reader({self.path!r}: {s.num_blocks} blocks, width {s.width}, {s.num_heads} heads "
            f"on {s.num_kv_heads}, vocabulary {s.vocab_size}, {self.num_bytes / 2**20:.1f} MiB)"
        )

    def ends(self) -> Arrays:
        """Return the arrays outside the blocks, 'wte', 'ln_f.gain', ..., float32."""
        return self._checked(self.read_ends(), "", 0)

    def block(self, index: int) -> Arrays:
        """Return the arrays of one block, 'attn.q' `[d, h k]`, ..., float32."""
        return self._checked(self.read_block(index), "h.", 1)

    def load(self) -> dict[str, Array]:
        """Return all parameters, the blocks stacked: what `decoder.apply` takes."""
        blocks = [self.block(index) for index in range(self.settings.num_blocks)]
        stacked = {f"h.{name}": np.stack([each[name] for each in blocks]) for name in blocks[0]}
        return {name: jnp.asarray(value) for name, value in {**self.ends(), **stacked}.items()}

    def _checked(self, arrays: Mapping[str, np.ndarray], prefix: str, stack: int) -> Arrays:
        shapes = {**matrix_shapes(self.settings), **vector_shapes(self.settings)}
        result = {}
        for name, value in arrays.items():
            wanted = shapes[prefix + name][stack:]
            if value.shape != wanted:
                raise Damaged(f"{self.path}: {name} has shape {value.shape}, not {wanted}")
            result[name] = np.ascontiguousarray(value, np.float32)
            if not np.isfinite(result[name]).all():
                raise Damaged(f"{self.path} is damaged: {name} has NaN or infinite entries")
        return result
