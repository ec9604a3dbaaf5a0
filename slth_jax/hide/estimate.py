"""Cost of a run before it begins: subset sums, bytes, and time on this machine."""

import time
from typing import NamedTuple

from slth_jax.factored import Part, Spec, num_bits, products
from slth_jax.hide import pieces
from slth_jax.hide.pieces import Piece
from slth_jax.hide.targets import Targets
from slth_jax.models.weights import Reader

_FIRST, _TIMED = 64, 1024  # rows of a part that are solved to compile, and to be timed


class Estimate(NamedTuple):
    """The cost of a run.

    Attributes:
      num_sums: the number of subset sums, or of entries in bands.
      random_weights: the number of random weights.
      ticket_bytes: the bytes of masks, levels of rows and columns, and kept matrices; a file has
        some more.
      seconds: the time on this machine, from some rows of each shape of parts.
      compile_seconds: the part of it that compiles.
    """

    num_sums: int
    random_weights: int
    ticket_bytes: int
    seconds: float
    compile_seconds: float


def estimate(reader: Reader, spec: Spec, *, shapes: int = 3) -> Estimate:
    """Return the cost of `solve`, measured on the first rows of some parts.

    Args:
      reader: the model to hide.
      spec: see `make_spec`.
      shapes: the number of shapes of parts to measure, those with most entries first. Parts of
        other shapes count with the mean time per entry.
    """
    by_shape: dict[Part, list[Part]] = {}
    for part in spec.parts:
        by_shape.setdefault(part.nameless, []).append(part)
    groups = sorted(by_shape.values(), key=lambda group: -sum(part.num_sums for part in group))
    targets, mesh = Targets(reader, spec), products.mesh()
    spent = compiling = measured = 0.0
    for group in groups[:shapes]:
        part = group[len(group) // 2]
        seconds = []
        for rows in (_FIRST, _TIMED):
            piece = Piece(part, 0, min(part.rows, rows))
            start = time.perf_counter()
            pieces.compute(piece, spec, 0, targets, mesh)
            seconds.append((time.perf_counter() - start, piece.num_sums))
        (first, few), (second, many) = seconds
        rate = second / many
        compiling += max(0.0, first - rate * few)
        every = sum(part.num_sums for part in group)
        spent += rate * every
        measured += every
    sums = sum(part.num_sums for part in spec.parts)
    levels = [sum(map(count, spec.parts)) for count in (spec.num_levels, spec.num_column_levels)]
    kept = sum(part.num_sums for part in spec.kept_parts)
    return Estimate(
        num_sums=sums,
        random_weights=sum(part.num_weights for part in spec.parts),
        ticket_bytes=num_bits(spec.parts) // 8 + sum(-(-count // 2) for count in levels) + 4 * kept,
        seconds=compiling + (spent / measured * sums if measured else 0.0),
        compile_seconds=compiling,
    )
