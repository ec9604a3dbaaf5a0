"""Pieces, the units of work of a run: rows of one part that are solved and saved together."""

from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, UInt8

from slth_jax.construction.rules import Rule
from slth_jax.factored import Part, Spec, products, solve
from slth_jax.factored.network import LEVELS
from slth_jax.hide.targets import Targets

# The number of entries per piece, which is some seconds of work. After a kill at most this work is
# lost.
_SUMS = 1 << 22
_STEP = 512  # large products are cut at multiples of this number of rows


class Piece(NamedTuple):
    """Rows ``start ... stop - 1`` of a part; row numbers continue from product to product."""

    part: Part
    start: int
    stop: int

    @property
    def num_sums(self) -> int:
        """The number of matrix entries in the piece's rows."""
        return (self.stop - self.start) * self.part.columns

    @property
    def name(self) -> str:
        """The piece's file name in the run's folder."""
        return f"{self.part.name}-{self.start:09d}"

    def spans(self) -> list[tuple[int, int, int]]:
        """Return (product, first row, last row + 1) for each product that has rows in the piece."""
        rows = self.part.rows
        return [
            (g, max(self.start - g * rows, 0), min(self.stop - g * rows, rows))
            for g in range(self.start // rows, (self.stop - 1) // rows + 1)
        ]


def cut(spec: Spec) -> list[Piece]:
    """Cut all parts, in order, into pieces; the result depends only on `spec`."""
    pieces = []
    for part in spec.parts:
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
    """Return the ratio of the free factor's scale to the target matrix's largest entry.

    The ratios 0.9 (with shift units) and 1.25 (without) gave the least error in measurements at 8
    to 20 samples. With shift units a small ratio is best: small samples approximate more finely,
    and shift units let the few largest entries be reached. At ratios below 0.8 some entries would
    exceed every subset sum. Without shift units the ratio must be larger, so that subset sums reach
    the largest entries.
    """
    return 0.9 if rule.search.shift_units else 1.25


# The ratio for a norm's map. It is large because each entry of the diagonal must be within reach;
# the zeros outside the diagonal are exact at any scale.
_DIAGONAL = 2.5
# The ratio for the coarsest scale of rows, which few rows need (see
# `factored.solve.rows_with_scales`).
_COARSEST = 4.0


def scale_of(matrix: Float[np.ndarray, "p r"], part: Part, spec: Spec) -> float:
    """Return the scale of the free factor for the approximation of a matrix."""
    rule = spec.rule(part)
    most = float(np.max(np.abs(matrix)))
    if most == 0:
        return 1.0
    factor = scale_factor(rule.for_relu() if part.relu else rule)
    if spec.scaling == "rows":
        factor = _COARSEST
    elif spec.diagonal(part):
        factor = _DIAGONAL
    return float(np.float32(factor * most))


def compute(
    piece: Piece, spec: Spec, seed: int, targets: Targets, mesh: Mesh
) -> tuple[dict[str, UInt8[np.ndarray, "rows ..."]], dict[str, Any]]:
    """Find a piece's masks; return arrays (packed masks, scale levels if any) and a report."""
    part = piece.part
    rule = spec.rule(part)
    arrays: dict[str, list[np.ndarray]] = {"bits": []}
    scales: dict[str, float] = {}
    prints: dict[str, str] = {}
    squared_error, squared_target, largest, beyond = 0.0, 0.0, 0.0, 0
    worst: list[dict[str, Any]] = []
    for g, first, last in piece.spans():
        matrix = targets.product(part, g)
        scale = scale_of(matrix, part, spec)
        column_levels = None
        if spec.num_column_levels(part):
            column_levels = solve.levels_of(solve.row_sizes(matrix.T))
            arrays.setdefault("columns", []).append(column_levels[None])
        columns = None if column_levels is None else LEVELS[column_levels]
        product = products.draw(seed, part, g, rule, columns)
        problem = solve.Problem(product, part, rule, scale, spec.samples_of(part.name))
        levels = None
        if part.band is not None:
            sizes = solve.row_sizes(matrix if columns is None else matrix / columns)
            every_level = solve.levels_of(sizes) if spec.row_scales else None
            scale = solve.band_scale(
                problem, matrix, mesh,
                levels=every_level, sizes=sizes, of_most=columns is not None,
            )  # fmt: skip
            problem = problem._replace(scale=scale)
            levels = None if every_level is None else every_level[first:last]
        if columns is not None and levels is not None:
            coarser = 2.0 ** (solve.HEADROOM // 2)
            scale = float(np.float32(scale * coarser))
            problem = problem._replace(scale=scale)
            levels = np.minimum(levels + solve.HEADROOM, len(LEVELS) - 1).astype(np.uint8)
            rows = matrix[first:last]
            masks, levels = solve.rows_with_scales(
                problem, rows, first, mesh, levels=levels, columns=columns
            )
        elif spec.scaling == "rows":
            masks, levels = solve.rows_with_scales(problem, matrix[first:last], first, mesh)
        else:
            masks = solve.rows(problem, matrix[first:last], first, mesh, levels=levels)
        arrays["bits"].append(masks.bits)
        if levels is not None:
            arrays.setdefault("levels", []).append(levels)
        scales[str(g)], prints[str(g)] = scale, products.fingerprint(product.key, part, scale)
        squared_error += float(masks.squared_error.sum(dtype=np.float64))
        squared_target += float(np.square(matrix[first:last], dtype=np.float64).sum())
        largest = max(largest, float(masks.largest_error.max()))
        worst.append(_worst_entry(masks, matrix, first) | {"product": g})
        beyond += int(masks.out_of_reach.sum())
    report = {
        "scales": scales,
        "fingerprints": prints,
        "squared_error": squared_error,
        "squared_target": squared_target,
        "largest_error": largest,
        "worst_entry": max(worst, key=lambda entry: entry["relative_error"]),
        "out_of_reach": beyond,
    }
    return {name: np.concatenate(parts) for name, parts in arrays.items()}, report


def _worst_entry(
    masks: solve.Masks, matrix: Float[np.ndarray, "rows columns"], first: int
) -> dict[str, Any]:
    """Return position, error and magnitude of the entry with the largest error in some rows.

    Error and magnitude are divided by the root mean square of the matrix.
    """
    i = int(masks.largest_error.argmax())
    row, column = first + i, int(masks.worst_column[i])
    size = float(np.sqrt(np.mean(np.square(matrix, dtype=np.float64)))) or 1.0
    return {
        "row": row,
        "column": column,
        "relative_error": float(masks.largest_error[i]) / size,
        "relative_size": abs(float(matrix[row, column])) / size,
    }
