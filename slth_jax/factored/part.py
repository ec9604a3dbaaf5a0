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
      index: the number of the part among all parts; it is folded into the random key of the part's
        weights.
      count, rows, columns, units: the number of products, and the dimensions of their factors.
      rows_are_inputs: if true, the rows of a product are the inputs of the map, so `left` is
        applied first; if false, the rows are the map's outputs.
      relu: whether a ReLU stands between the two factors.
      band: the shape of the grouped factor's mask if each row keeps one unit per column (see
        `construction.trellis`); None for subset sums.
      weights: the name of the distributions of a band's random weights, a key of
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
        """The number of entries of all factors, including a band's entries that are always 0."""
        return self.count * self.units * (self.rows + self.columns)

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of the masks of the part's free factors."""
        return self.count, self.rows, self.units

    @property
    def num_bytes(self) -> int:
        """The number of bytes of the packed masks of the part's free factors."""
        if self.band is None:
            return math.prod(self.shape) // 8
        return choices.num_bytes(self.shape, self.band.bits)

    @property
    def nameless(self) -> "Part":
        """A copy without name, block and number of rows; parts with equal copies share programs."""
        return dataclasses.replace(self, block=None, kind="", index=0, count=1, rows=1)


@dataclasses.dataclass(frozen=True)
class Bands:
    """Settings of bands, which store b mask bits per matrix entry and replace subset sums.

    See `construction.trellis`.

    Attributes:
      bits: b, the mask bits per entry of most matrices.
      states: the base-2 logarithm of the number of states in the search for shortest paths.
      weights: the name of the distributions of weights, a key of `construction.encode.SOURCES`.
      row_scales: whether each row of a free factor has a scale of 4 bits (see `network.LEVELS`) in
        addition to the scale of its matrix.
      column_scales: whether each column of a grouped factor also has a scale, which is relative to
        the largest column scale. If `row_scales` and `column_scales` are true, rows with outliers
        are solved again with coarser row scales.
      others: exceptions from `bits`, as pairs of a matrix's kind or name and its mask bits per
        entry.
      diagonal_gain: whether the last norm's map before a tied embedding is a diagonal of subset
        sums, like the maps of other norms. `diagonal_gain` is false in tickets of an earlier
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
        """Return the rule for all matrices that are not listed in `others`."""
        return rules.band(self.bits, self.states)

    def band(self, name: str) -> Band:
        """Return the band of the matrix with this name, such as '3.q'."""
        others = dict(self.others)
        bits = others.get(name, others.get(name.rpartition(".")[2], self.bits))
        band = rules.band(bits, self.states).band
        assert band is not None
        return band
