"""A rule of construction: it assigns hidden units to columns and configures the search for masks.

A rule *assigns* the hidden units k of ``target_ij ~ sum_k left_ik right_kj`` to the columns j of
`right`, the grouped factor. The result of a rule is an `Assignment`, which `construction.engine`
turns into masks.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from slth_jax import checks
from slth_jax.construction.trellis import Band
from slth_jax.types import Array, ArrayLike


class Factors(NamedTuple):
    """Two random factors and the matrix that their masked product is to approximate."""

    right: Float[Array, "n r"]  # the grouped factor
    left: Float[Array, "p n"] | None = None  # the free factor; None if its rows are drawn later
    target: Float[Array, "p r"] | None = None


class Span(NamedTuple):
    """A range of hidden units, ``first ... last - 1``; `first` and `last` may be traced."""

    first: ArrayLike
    last: ArrayLike
    most: int  # a static upper bound on ``last - first``


class Assignment(NamedTuple):
    """The assignment of the hidden units of ``right [n, r]`` to its columns.

    The r columns form `blocks` blocks of ``c = ceil(r / blocks)`` neighbouring columns. Each column
    has slots (places for units), and the unit in a slot is connected to that column only. A shift
    unit is connected to every column of one block.
    """

    units: Int[Array, "*batch r slots"]  # the unit in each slot of each column
    filled: Bool[Array, "*batch r slots"]  # whether the slot holds a unit; empty slots come last
    shift: Int[Array, "*batch blocks R"]  # the shift units of each block; -1 if missing

    @property
    def columns(self) -> int:
        """The number c of columns in a block."""
        return -(-self.units.shape[-2] // self.shift.shape[-2])


# The fields `units` and `filled` of `Assignment`, each `[r, slots]`.
Slots = tuple[Int[Array, "r slots"], Bool[Array, "r slots"]]
# ``assign(factors, span)`` distributes the units of the span over the columns of `factors.right`.
Assign = Callable[[Factors, Span], Slots]


@dataclasses.dataclass(frozen=True)
class Search:
    """Settings of the search for the mask of each row of `left`; stored tickets contain them.

    Row i of `left` keeps or drops each of the R shift units of a block; a *pattern* s in {0, 1}^R
    is one such choice. Pattern s changes target j of the block to ``target_ij - sum_u s_u left_iu
    right_uj``. An ordinary subset sum over the units of column j then approximates the changed
    target. For each block a row uses the pattern (choice of shift units) with the smallest error
    among all patterns tried. If a ReLU stands between the factors, there are no shift units.

    Attributes:
      shift_units: R, the number of shift units per block; 0 for none.
      columns: c, the largest number of columns in a block.
      reroll: the fraction of a row's blocks that one step solves. The first steps solve each block
        once. Each of the `rerolls` further steps selects the blocks with the largest errors so far
        and solves each of them again with its next pattern. If `reroll` is 1 and `rerolls` is None,
        every block is solved with every pattern.
      rerolls: the number of steps after every block was solved once; None for ``2^R - 1``.
      centred: if true, patterns that bring a block's targets nearest to the middle of their subset
        sums are tried first. If `centred` is false, patterns are tried in the order of their binary
        numbers. Let the samples of column j sum to 2 mu_j and their squares to 4 sigma_j^2. If
        `centred` is true, patterns are tried in increasing order of ``max_j (v_j - mu_j)^2 /
        sigma_j^2``, where v_j is target j after the change by the pattern. The subset sums of
        column j are densest at mu_j, so one of the first few patterns is nearly always the best.

    Raises:
      ValueError: a number is outside its range.
    """

    shift_units: int = 0
    columns: int = 1
    reroll: float = 1.0
    rerolls: int | None = None
    centred: bool = False

    def __post_init__(self):
        checks.integer("shift_units", self.shift_units, low=0, high=12)
        checks.integer("columns", self.columns, low=1)
        checks.number("reroll", self.reroll, low=0, open_low=True, high=1)
        if self.rerolls is not None:
            checks.integer("rerolls", self.rerolls, low=0)
        if not isinstance(self.centred, bool):
            raise checks.fail("centred", "true or false", repr(self.centred))


@dataclasses.dataclass(frozen=True)
class Rule:
    """A rule of construction: it assigns units to columns, and configures the search for masks.

    Attributes:
      name: the name by which callers select the rule.
      summary: a one-line description.
      assign: the function that assigns units to columns, see `Assign`.
      assign_relu: the function used instead of `assign` if a ReLU stands between the factors. If
        `assign_relu` is None, `assign` is used with a ReLU too.
      search: the settings of the search for masks.
      either_side: if true, each group of units belongs to one row of `left` or to one column of
        `right`, depending on which of the two are fewer; if false, to one column of `right`.
      needs_target: whether `assign` reads `Factors.left` and `Factors.target`.
      most: the largest number of samples per entry that are kept; None for no limit.
      band: the shape of the mask of `right` if rows are solved by shortest paths
        (`construction.trellis`); None if rows are solved by subset sums.
    """

    name: str
    summary: str
    assign: Assign
    assign_relu: Assign | None = None
    search: Search = Search()
    either_side: bool = False
    needs_target: bool = False
    most: int | None = None
    band: Band | None = None

    def for_relu(self) -> "Rule":
        """Return the variant of this rule for two factors with a ReLU between them.

        The variant has neither shift units nor a band.
        """
        assign = self.assign_relu or self.assign
        return dataclasses.replace(self, assign=assign, search=Search(), band=None)

    def assignment(
        self,
        right: Float[Array, "n r"],
        width: ArrayLike,
        *,
        left: Float[Array, "p n"] | None = None,
        target: Float[Array, "p r"] | None = None,
    ) -> Assignment:
        """Assign the first `width` units (rows of `right`) to columns; `width` may be traced.

        The first ``R * blocks`` units become shift units, R for each block of columns. A block has
        fewer than R shift units if R per block would be more than a quarter of all units, or would
        leave a column without a unit.

        Raises:
          ValueError: the rule needs `left` and `target`, and one of them is None.
        """
        if self.needs_target and (left is None or target is None):
            raise checks.fail("construction", "a rule that needs no target", repr(self.name))
        n, r = right.shape
        factors = Factors(right, left, target)
        count, c = self.search.shift_units, self.search.columns
        if not count:
            units, filled = self.assign(factors, Span(0, width, n))
            return Assignment(units, filled, jnp.zeros((1, 0), jnp.int32))
        blocks = -(-r // c)
        rounds = _rounds(jnp.asarray(width), r, blocks, count)
        widths = np.arange(n + 1)
        most = int(np.max(widths - blocks * _rounds(widths, r, blocks, count)))
        units, filled = self.assign(factors, Span(blocks * rounds, width, most))
        chex.assert_equal_shape([units, filled])
        u = jnp.arange(count, dtype=jnp.int32)[None, :]
        b = jnp.arange(blocks, dtype=jnp.int32)[:, None]
        # Shift unit u of block b is hidden unit ``blocks u + b``: [blocks, R].
        return Assignment(units, filled, jnp.where(u < rounds, blocks * u + b, -1))


def _rounds(width, r: int, blocks: int, most: int):
    """Return the number of shift units per block for a source of each width, at most `most`."""
    spare = (width - r) // blocks
    quarter = width // (4 * blocks)
    return (spare * (spare < quarter) + quarter * (spare >= quarter)).clip(0, most)


def take_turns(
    weigh: Callable[[Array, Any], Float[Array, " n"]],
    num_columns: int,
    span: Span,
    n: int,
    *,
    state: Any = None,
    taken: Callable[[Array, Array, Any], Any] = lambda turn, unit, state: state,
) -> Slots:
    """Let each column in turn choose the unused unit to which `weigh` gives the largest value.

    Args:
      weigh: a function; ``weigh(turn, state)`` returns the value `[n]` of each unit for column
        ``turn % num_columns``.
      num_columns: the number r of columns.
      span: the range of units to assign.
      n: the total number of units.
      state: the initial state, which `weigh` reads and `taken` updates.
      taken: a function; ``taken(turn, unit, state)`` returns the state after `unit` was assigned.
    """
    slots = -(-span.most // num_columns)
    index = jnp.arange(n, dtype=jnp.int32)

    def choose(turn, carry):
        free, chosen, state = carry  # bool [n], int32 [slots * r], state
        value = jnp.where(free, weigh(turn, state), -jnp.inf)
        # This finds the first of the largest values; argmax takes four times as long on a CPU.
        unit = jnp.min(jnp.where(value == jnp.max(value), index, n))
        chosen = chosen.at[turn].set(jnp.where(turn < turns, unit, -1))
        return free & (index != unit), chosen, taken(turn, unit, state)

    free = (index >= span.first) & (index < span.last)
    unassigned = jnp.full(slots * num_columns, -1, jnp.int32)
    turns = jnp.asarray(span.last) - span.first
    # The number of rounds is the same for every width, so devices need not agree on when to stop.
    _, chosen, _ = jax.lax.fori_loop(0, span.most, choose, (free, unassigned, state))
    chosen = chosen.reshape(slots, num_columns).T  # [r, slots]
    return jnp.maximum(chosen, 0), chosen >= 0
