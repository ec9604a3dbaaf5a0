"""The unit of work of a run: some rows of one part, solved, and written before the next begins."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy
from jax.sharding import Mesh

from slth_jax import storage
from slth_jax.construction.rules import Rule
from slth_jax.hide import solver
from slth_jax.hide.targets import Targets
from slth_jax.sources import products
from slth_jax.sources.recipe import Part, Recipe

# Some seconds of work: what is computed again at most after a kill.
_SUMS = 1 << 22
_STEP = 512  # rows of a product that is cut are cut at multiples of this


class Piece(NamedTuple):
    """Rows ``start ... stop - 1`` of a part, its products one below the other."""

    part: Part
    start: int
    stop: int

    @property
    def num_sums(self) -> int:
        """The number of entries that these rows have to meet."""
        return (self.stop - self.start) * self.part.columns

    @property
    def name(self) -> str:
        """The name of the file."""
        return f"{self.part.name}-{self.start:09d}"

    def spans(self) -> list[tuple[int, int, int]]:
        """Return (product, first row, last row + 1) of each product that is touched."""
        rows, found = self.part.rows, []
        for g in range(self.start // rows, (self.stop - 1) // rows + 1):
            found.append((g, max(self.start - g * rows, 0), min(self.stop - g * rows, rows)))
        return found


def cut(recipe: Recipe) -> list[Piece]:
    """Return all pieces, in the order of the parts; the same for every machine."""
    pieces = []
    for part in recipe.parts:
        whole = part.rows * part.columns
        if whole <= _SUMS:
            step = max(1, _SUMS // whole) * part.rows
            edges = list(range(0, part.count * part.rows, step))
        else:
            step = max(_STEP, _SUMS // part.columns // _STEP * _STEP)
            edges = [
                g * part.rows + i for g in range(part.count) for i in range(0, part.rows, step)
            ]
        ends = [*edges[1:], part.count * part.rows]
        pieces += [Piece(part, a, b) for a, b in zip(edges, ends, strict=True)]
    return pieces


def scale_factor(rule: Rule) -> float:
    """Return the largest product of two weights, in units of the largest entry of the target.

    Measured at 8 to 20 samples: shift units bring the few largest entries within reach, so
    smaller and finer samples serve best (below 0.8 single entries are lost); without them reach
    is what is short.
    """
    return 0.9 if rule.search.shift_units else 1.25


def compute(
    piece: Piece, recipe: Recipe, seed: int, targets: Targets, mesh: Mesh
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the packed masks `[rows, units / 8]` of a piece, and what is to be told of it."""
    part, rule = piece.part, recipe.construction
    part_rule = rule.for_relu() if part.relu else rule
    key = products.part_key(seed, part, recipe)
    bits: list[np.ndarray] = []
    scales: dict[str, float] = {}
    prints: dict[str, str] = {}
    squared_error, squared_target, largest, beyond = 0.0, 0.0, 0.0, 0
    for g, first, last in piece.spans():
        matrix = targets.product(part, g)
        most = float(np.max(np.abs(matrix)))
        scale = float(np.float32(scale_factor(part_rule) * most)) if most > 0 else 1.0
        product = products.product(key, part, g, rule)
        wanted = matrix[first:last]
        found = solver.rows(product, part, rule, wanted, first, scale, recipe.samples, mesh)
        bits.append(found.bits)
        scales[str(g)], prints[str(g)] = scale, products.fingerprint(product, scale, part)
        squared_error += float(found.squared_error.sum(dtype=np.float64))
        squared_target += float(np.square(wanted, dtype=np.float64).sum())
        largest = max(largest, float(found.largest_error.max()))
        beyond += int(found.out_of_reach.sum())
    told = {
        "scales": scales,
        "fingerprints": prints,
        "squared_error": squared_error,
        "squared_target": squared_target,
        "largest_error": largest,
        "out_of_reach": beyond,
    }
    return np.concatenate(bits), told


def write(folder: Path, piece: Piece, bits: np.ndarray, told: Mapping[str, Any]) -> None:
    """Write a piece, atomically; its checksum goes with it."""
    entry = {"piece": json.dumps({**told, "sha256": hashlib.sha256(bits.tobytes()).hexdigest()})}
    data = safetensors.numpy.save({"bits": bits}, metadata=entry)
    storage.write_bytes(folder / f"{piece.name}.safetensors", data)


def read(folder: Path, piece: Piece) -> tuple[np.ndarray, dict[str, Any]]:
    """Return what `write` wrote.

    Raises:
      Damaged: the file is not what was written.
    """
    path = folder / f"{piece.name}.safetensors"
    try:
        with safetensors.safe_open(path, "numpy") as opened:
            told = json.loads(opened.metadata()["piece"])
            bits = opened.get_tensor("bits")
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise storage.Damaged(f"{path} is damaged: {storage.reason(error)}") from error
    shape = (piece.stop - piece.start, piece.part.units // 8)
    if bits.shape != shape or hashlib.sha256(bits.tobytes()).hexdigest() != told["sha256"]:
        raise storage.Damaged(f"{path} is damaged: its checksum does not match")
    return bits, told


def exists(folder: Path, piece: Piece) -> bool:
    """Return whether the piece was written."""
    return (folder / f"{piece.name}.safetensors").exists()
