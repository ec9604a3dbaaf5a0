"""Estimate, before a run, its matrix entries, its bytes, and its time on this machine."""

import time
from functools import partial
from typing import NamedTuple

from slth_jax import checks, machines
from slth_jax.construction.rules import Rule
from slth_jax.factored import Part, Spec, products
from slth_jax.factored import solve as step
from slth_jax.hide import pieces
from slth_jax.hide.pieces import Piece
from slth_jax.hide.targets import Targets
from slth_jax.models.weights import Reader

_FIRST, _TIMED = 64, 1024  # rows of a part that are solved to compile, and to measure time


class Estimate(NamedTuple):
    """The estimated cost of a run.

    Attributes:
      num_sums: the number of matrix entries to approximate.
      random_weights: the number of entries of all factors.
      ticket_bytes: the number of bytes of masks, scale levels and kept matrices; the file is
        slightly larger. The masks of diagonal matrices are compressed; they are estimated from the
        number of kept samples.
      seconds: the time on this machine, extrapolated from some rows of a few parts.
      compile_seconds: the part of `seconds` that is spent on compiling.
    """

    num_sums: int
    random_weights: int
    ticket_bytes: int
    seconds: float
    compile_seconds: float


def estimate(reader: Reader, spec: Spec, *, shapes: int = 3) -> Estimate:
    """Return the cost of a call of `solve`, estimated from the first rows of some parts.

    Args:
      reader: the model to hide.
      spec: see `make_spec`.
      shapes: the number of different shapes of parts to measure, beginning with the shapes that
        contain the most entries. For parts of all other shapes the mean time per entry is assumed.
    """
    checks.instance("reader", reader, Reader, "an open file (models.weights.open)")
    checks.instance("spec", spec, Spec, "a spec (hide.make_spec)")
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
        ticket_bytes=sum(_stored(spec, part) for part in spec.parts)
        + sum(-(-count // 2) for count in levels)
        + 4 * kept,
        seconds=compiling + (spent / measured * sums if measured else 0.0),
        compile_seconds=compiling,
    )


class Ahead(NamedTuple):
    """The report of one of a run's programs, compiled for another machine.

    Attributes:
      report: the memory per chip and the compile time. The report's lower bound on the running time
        includes one pass over arguments and results, but not the comparisons of the search.
      parts: the names of the parts that the program solves.
      calls: the least number of calls of the program per run; rows that are solved again are not
        counted.
    """

    report: machines.Report
    parts: list[str]
    calls: int


def compile_for(on: str, spec: Spec) -> list[Ahead]:
    """Compile the programs of `solve` for a machine such as 'v5e:4x4'; return their reports.

    Args:
      on: the machine, see `machines.compile_for`.
      spec: see `make_spec`.
    """
    by_program: dict[tuple[Part, Rule], list[Part]] = {}
    for part in spec.parts:
        by_program.setdefault((part.nameless, spec.rule(part)), []).append(part)
    ahead = []
    for (_, rule), parts in by_program.items():
        report = machines.compile_for(on, partial(step.trace, parts[0], rule))
        rows = sum(part.count * part.rows for part in parts)
        calls = -(-rows // (products.ROWS * report.chips))
        ahead.append(Ahead(report, [part.name for part in parts], calls))
    return ahead


def _stored(spec: Spec, part: Part) -> int:
    """Return the number of bytes of a part's masks in the ticket's file."""
    if not spec.diagonal(part):
        return part.num_bytes
    # Half of the samples of the diagonal and of the constant row are kept; zlib stores each kept
    # sample in about ten bits.
    ones = (part.rows + part.columns) * (part.units // part.columns) // 2
    return part.count * ones * 10 // 8
