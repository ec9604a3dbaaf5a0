"""A part of the random network (a stack of products), and the settings of bands."""

import dataclasses
import math

from slth_jax import checks
from slth_jax.construction import choices, encode, rules
from slth_jax.construction.rules import Rule
from slth_jax.construction.trellis import Band


@dataclasses.dataclass(frozen=True)
class Part:
    """A stack of `count` products ``left [rows, units] right [units, columns]``.

    Attributes:
      block: the number of the part's block; None if the part is outside the blocks.
      kind: the kind of matrix, such as 'wte' or 'qk', see the table in `factored.spec`.
      index: the part's number among all parts, which is folded into its random key.
      count, rows, columns, units: the shape of the stack.
      rows_are_inputs: if true, rows are inputs of the map (`left` is applied first); if false, rows
        are outputs.
      relu: whether a ReLU stands between the factors.
      band: the shape of the grouped factor's mask if each row keeps one unit per column (see
        `construction.trellis`); None for subset sums.
      weights: the name of the distributions of a band's weights, a key of
        `construction.encode.SOURCES`.
    """

    block: int | None
    kind: str
    index: int
    count: int
    rows: int
    columns: int
    units: int
    rows_are_inputs: bool
    relu: bool
    band: Band | None = None
    weights: str = "uniform"

    @property
    def name(self) -> str:
        """The part's name in files, such as '3.qk' or 'wte'."""
        return self.kind if self.block is None else f"{self.block}.{self.kind}"

    @property
    def num_sums(self) -> int:
        """The number of matrix entries that the masks approximate."""
        return self.count * self.rows * self.columns

    @property
    def num_weights(self) -> int:
        """The number of random weights of both factors."""
        return self.count * self.units * (self.rows + self.columns)

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of the masks of the free factors."""
        return self.count, self.rows, self.units

    @property
    def num_bytes(self) -> int:
        """The number of bytes of the stored masks of the free factors."""
        if self.band is None:
            return math.prod(self.shape) // 8
        return choices.num_bytes(self.shape, self.band.bits)

    @property
    def nameless(self) -> "Part":
        """The shape of this part alone: parts for which it is equal share compiled programs."""
        return dataclasses.replace(self, block=None, kind="", index=0, count=1, rows=1)


@dataclasses.dataclass(frozen=True)
class Bands:
    """Settings of bands, which replace subset sums: b mask bits per entry.

    See `construction.trellis`.

    Attributes:
      bits: b, the mask bits per entry of most matrices.
      states: the base-2 logarithm of the number of search states.
      weights: the name of the distributions of weights, a key of `construction.encode.SOURCES`.
      row_scales: whether each row of a free factor has a scale of 4 bits (see `network.LEVELS`) in
        addition to the scale of its matrix.
      column_scales: whether each column of a grouped factor also has a scale, which is relative to
        the largest column scale. If so, rows with outliers are solved again with coarser row
        scales.
      others: exceptions from `bits`, as pairs: the kind or the name of a matrix, and its bits per
        entry.
      diagonal_gain: whether the map of the last norm, which precedes a tied embedding, is a
        diagonal of subset sums like the maps of other norms. It is false in tickets of an earlier
        version.
    """

    bits: int
    states: int = 12
    weights: str = "sign_uniform"
    row_scales: bool = True
    column_scales: bool = True
    others: tuple[tuple[str, int], ...] = ()
    diagonal_gain: bool = True

    def __post_init__(self):
        self.rule()
        for name, _ in self.others:
            self.band(name)
        checks.choice("weights", self.weights, encode.SOURCES)

    def rule(self) -> Rule:
        """Return the rule of all matrices that are no exceptions."""
        return rules.band(self.bits, self.states)

    def band(self, name: str) -> Band:
        """Return the band of the matrix with this name, such as '3.q'."""
        others = dict(self.others)
        bits = others.get(name, others.get(name.rpartition(".")[2], self.bits))
        band = rules.band(bits, self.states).band
        assert band is not None
        return band
