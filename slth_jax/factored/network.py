"""The random network: a spec, a seed, and the scales of its factors."""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int

from slth_jax.factored.part import Part
from slth_jax.factored.spec import Spec

LEVELS = np.array([(1 - i % 2 / 4) * 2.0 ** -(i // 2) for i in range(16)], np.float32)
"""Row scale divided by the matrix's scale, by the row's 4-bit level: 1, 3/4, 1/2, 3/8, ..."""


@dataclasses.dataclass(frozen=True)
class Network:
    """A random network: a spec, a seed, and a scale for the free factor of each part's products.

    If `Spec.row_scales` is true, `levels` maps the name of each part to the levels `[count, rows]`
    of its row scales (indices into `LEVELS`). If columns have scales, `columns` maps the name of
    each part to the levels `[count, columns]` of its column scales.
    """

    spec: Spec
    seed: int
    scales: Mapping[str, list[float]]
    levels: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    columns: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def row_scales(self, part: Part, g: int) -> Float[np.ndarray, " rows"]:
        """Return the scale of each row of the free factor of product `g`."""
        scale = np.float32(self.scales[part.name][g])
        if part.name not in self.levels:
            return np.full(part.rows, scale)
        return scale * LEVELS[self.levels[part.name][g]]

    def column_scales(self, part: Part, g: int) -> Float[np.ndarray, " columns"] | None:
        """Return the scale of each column of product `g`'s grouped factor; None if all are 1."""
        levels = self.columns.get(part.name)
        return None if levels is None else LEVELS[levels[g]]

    def row_numbers(self, part: Part, g: int) -> Int[np.ndarray, " rows"]:
        """Return, for each row of a free factor, the number that is folded into its random key.

        If `Spec.scaling` is 'rows', the number depends on the level of the row's scale, so each
        level has different random weights.
        """
        rows = np.arange(part.rows)
        if self.spec.scaling != "rows":
            return rows
        return rows + part.rows * self.levels[part.name][g].astype(int)
