"""Read weights block by block, so that memory does not grow with the number of blocks."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping

import jax.numpy as jnp
import numpy as np

from slth_jax.models.settings import Settings, matrix_shapes, vector_shapes
from slth_jax.storage import Damaged
from slth_jax.types import Array

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, repr=False)
class Reader:
    """An open weight file: the model's settings, and its arrays, which are read when needed.

    Attributes:
      path: the path that was opened, for messages.
      settings: the network.
      num_bytes: the number of bytes of all weights in float32; each weight is counted once.
      read_ends: a function that returns the arrays outside the blocks.
      read_block: a function that returns the arrays of a block, given its number.
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
        """Return the arrays outside the blocks ('wte', 'ln_f.gain', ...) as float32."""
        return self._checked(self.read_ends(), None)

    def block(self, index: int) -> Arrays:
        """Return the arrays of one block ('attn.q' `[d, h k]`, ...) as float32."""
        return self._checked(self.read_block(index), index)

    def check_entries(self) -> None:
        """Read every array once, so that damage is noticed before a long computation begins.

        Raises:
          CheckpointError: an array has NaN or infinite entries, or cannot be read; the error
            message names the array and the block.
        """
        self.ends()
        for index in range(self.settings.num_blocks):
            self.block(index)

    def load(self) -> dict[str, Array]:
        """Return all parameters, with blocks stacked, in the form that `decoder.apply` takes."""
        blocks = map(self.block, range(self.settings.num_blocks))
        return {name: jnp.asarray(value) for name, value in stacked(self.ends(), blocks).items()}

    def _checked(self, arrays: Mapping[str, np.ndarray], block: int | None) -> Arrays:
        shapes = {**matrix_shapes(self.settings), **vector_shapes(self.settings)}
        result = {}
        for name, value in arrays.items():
            shape = shapes[name] if block is None else shapes[f"h.{name}"][1:]
            where = name if block is None else f"{name} of block {block}"
            if value.shape != shape:
                raise Damaged(f"{self.path}: {where} has shape {value.shape}, not {shape}")
            with np.errstate(over="ignore"):
                result[name] = np.ascontiguousarray(value, np.float32)
            if not np.isfinite(result[name]).all():
                raise Damaged(f"{self.path} is damaged: {where} has NaN or infinite entries")
        return result


def stacked(ends: Mapping[str, np.ndarray], blocks: Iterable[Mapping[str, np.ndarray]]) -> Arrays:
    """Return all parameters; the arrays NAME of all blocks are stacked under the name 'h.NAME'."""
    parts: dict[str, list[np.ndarray]] = {}
    for block in blocks:
        for name, value in block.items():
            parts.setdefault(f"h.{name}", []).append(value)
    return {**ends, **{name: np.stack(values) for name, values in parts.items()}}
