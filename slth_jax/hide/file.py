"""The ticket of a whole model: joined from pieces, and read part by part.

The format is that of `slth_jax.ticket`; this module writes and reads it as a stream, since such a
ticket may not fit into memory twice.
"""

import json
import math
import os
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from slth_jax import checks, storage, ticket
from slth_jax.sources import decoder, products
from slth_jax.sources.recipe import Part, Recipe
from slth_jax.ticket import Ticket

NAME = "ticket.safetensors"
SOURCE = "decoder"
_KEPT = "kept."


class Opened(NamedTuple):
    """The ticket of a whole model; its masks are read when they are asked for."""

    ticket: Ticket
    recipe: Recipe
    scales: dict[str, list[float]]

    def entries(self, name: str, mesh: Mesh | None = None) -> np.ndarray:
        """Return the matrices of a part, `[count, rows, columns]`: generated, masked, multiplied.

        Those that were kept of the target are read.
        """
        bits = self.ticket.bits
        for part in self.recipe.parts:
            if part.name == name:
                mesh = products.mesh() if mesh is None else mesh
                scales = self.scales[name]
                return products.part_entries(
                    self.recipe, part, self.ticket.seed, scales, bits[name], mesh
                )
        part = next(part for part in self.recipe.kept_parts if part.name == name)
        raw = bits[f"{_KEPT}{name}"]
        return raw.view(np.float32).reshape(part.count, part.rows, part.columns)

    def __repr__(self) -> str:
        """Return the size in one line."""
        s, m = self.recipe.settings, self.ticket.metadata
        return (
            f"Opened({s.num_blocks} blocks of width {s.width} in {m['random_weights']:,} random "
            f"weights, seed {self.ticket.seed}, {self.recipe.samples} samples an entry)"
        )


def opened(path: str | os.PathLike[str], *, check: bool = False) -> Opened:
    """Return the ticket of a whole model at `path`, its header verified (the masks too, `check`).

    Raises:
      ValueError: it is a ticket of something else.
      CheckpointError: it is missing or damaged.
    """
    found = ticket.open(path, check=check)
    if found.source != SOURCE:
        raise checks.fail(str(path), "the ticket of a whole model", f"source {found.source!r}")
    recipe, scales = decoder.read(found.options)
    return Opened(found, recipe, scales)


def write(
    path: Path,
    recipe: Recipe,
    seed: int,
    scales: Mapping[str, list[float]],
    fingerprint: str,
    metadata: Mapping[str, Any],
    read: Callable[[Part], Iterable[np.ndarray]],
    kept: Callable[[Part], np.ndarray],
) -> None:
    """Write a ticket as a stream, atomically.

    Args:
      path: of the file.
      recipe, seed, scales: the source.
      fingerprint: of its weights.
      metadata: in JSON's types.
      read: returns the packed masks of a part, piece by piece; it is called twice.
      kept: returns the matrices of a part that stays the target's.
    """
    parts = {part.name: part for part in recipe.parts}
    others = {f"{_KEPT}{part.name}": part for part in recipe.kept_parts}
    sizes = {name: math.prod(part.shape) // 8 for name, part in parts.items()}
    sizes |= {name: 4 * part.num_sums for name, part in others.items()}

    def blocks(name: str) -> Iterable[np.ndarray]:
        if name in parts:
            return read(parts[name])
        return (np.ascontiguousarray(kept(others[name]), np.float32) for _ in range(1))

    header = ticket.header(
        source=SOURCE,
        options={**recipe.to_json(), "scales": dict(scales)},
        seed=seed,
        shapes={name: part.shape for name, part in parts.items()},
        masks_sha256=ticket.masks_sum((n, (sizes[n],), blocks(n)) for n in sorted(sizes)),
        fingerprint=fingerprint,
        metadata=metadata,
    )
    table: dict[str, Any] = {"__metadata__": header}
    start = 0
    for name in sorted(sizes):
        end = start + sizes[name]
        table[name] = {"dtype": "U8", "shape": [sizes[name]], "data_offsets": [start, end]}
        start = end
    text = json.dumps(table).encode()  # in this order, so that bytes repeat
    text += b" " * (-len(text) % 8)
    with storage.writing(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in sorted(sizes):
            for block in blocks(name):
                file.write(np.ascontiguousarray(block).data)
