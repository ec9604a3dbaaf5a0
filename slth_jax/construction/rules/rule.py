"""A rule of construction: it assigns hidden units to columns and sets how long rows search.

A rule *assigns* the hidden units k of ``target_ij ~ sum_k left_ik right_kj`` to the columns j of
`right`, the grouped factor. The result is an `Assignment`; `construction.engine` turns it into
masks.
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
    """The hidden units ``first ... last - 1``; both ends may be traced."""

    first: ArrayLike
    last: ArrayLike
    most: int  # an upper bound of ``last - first``, static


class Assignment(NamedTuple):
    """The assignment of the hidden units of ``right [n, r]`` to its columns.

    The columns form `blocks` blocks of ``c = ceil(r / blocks)`` neighbours. A unit in a slot is
    connected to one column, a shift unit to every column of its block.
    """

    units: Int[Array, "*batch r slots"]  # the unit in each slot of each column
    filled: Bool[Array, "*batch r slots"]  # whether the slot has a unit; empty slots come last
    shift: Int[Array, "*batch blocks R"]  # the shift units of each block; -1 for none

    @property
    def columns(self) -> int:
        """The number of columns of a block, c."""
        return -(-self.units.shape[-2] // self.shift.shape[-2])


# The unit in each slot `[r, slots]`, and whether the slot is filled: two fields of `Assignment`.
Slots = tuple[Int[Array, "r slots"], Bool[Array, "r slots"]]
# ``assign(factors, span)`` distributes the units of the span over the columns of `factors.right`.
Assign = Callable[[Factors, Span], Slots]


@dataclasses.dataclass(frozen=True)
class Search:
    """Settings of the search for the masks of each row of the free factor; stored in tickets.

    Row i keeps or drops each of the R shift units of a block. Pattern s in {0, 1}^R changes target
    j of the block to ``target_ij - sum_u s_u left_iu right_uj``, which becomes an ordinary subset
    sum over the units of column j. The row takes the best of the patterns that it tries. Across a
    ReLU there are no shift units.

    Attributes:
      shift_units: R, the number of shift units per block; 0 for none.
      columns: c, the largest number of columns in a block.
      reroll: the share of a row's blocks that is solved in one step. First each block is solved
        once. Then come `rerolls` steps: each solves the blocks with the largest errors so far
        again, with their next patterns. If the share is 1 and `rerolls` is None, every block is
        solved with every pattern.
      rerolls: the number of these further steps; None for ``2^R - 1``.
      centred: whether to try first the patterns that bring a block's targets nearest to the middle
        of their subset sums; if false, patterns are tried by number. Let the samples of column j
        sum to 2 mu and their squares to 4 sigma^2. Patterns are sorted by the largest
        ``(v_j - mu_j)^2 / sigma_j^2`` over the shifted targets v_j, smallest first. Subset sums are
        densest at mu, so one of the first few patterns is nearly always the best.

    Raises:
      ValueError: a number outside its range.
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
    """A construction: an assignment of units, and a search for the masks of rows.

    Attributes:
      name: the name by which callers select the rule.
      summary: a description in one line.
      assign: distributes units over columns, see `Assign`.
      assign_relu: as `assign`, if a ReLU stands between the factors; None takes `assign`.
      search: see `Search`.
      either_side: whether the grouped factor is the factor with the smaller outer dimension; if
        not, it is `right`.
      needs_target: whether `assign` reads `Factors.left` and `Factors.target`.
      band: the shape of the grouped mask if rows are shortest paths (`construction.trellis`)
        instead of subset sums; None otherwise.
    """

    name: str
    summary: str
    assign: Assign
    assign_relu: Assign | None = None
    search: Search = Search()
    either_side: bool = False
    needs_target: bool = False
    band: Band | None = None

    def for_relu(self) -> "Rule":
        """Return the rule to use across a ReLU: subset sums without shift units."""
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
        """Assign the first `width` rows of `right` to its columns; `width` may be traced.

        The first ``R blocks`` rows are shift units. A block has fewer than R shift units if R per
        block would be more than a quarter of all units, or would leave a column without a unit.

        Raises:
          ValueError: the rule reads `left` and `target`, and one of them is None.
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
    """Return the number of shift units per block for each width, at most `most`."""
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
    """Let the columns choose in turn the unused unit that has the largest value for them.

    Args:
      weigh: ``weigh(turn, state)``, `[n]`: the value of each unit to column ``turn % num_columns``.
      num_columns: r.
      span: the units to be assigned.
      n: the total number of units.
      state: further values that `weigh` reads.
      taken: ``taken(turn, unit, state)``: the state after that unit was assigned.
    """
    slots = -(-span.most // num_columns)
    index = jnp.arange(n, dtype=jnp.int32)

    def choose(turn, carry):
        free, chosen, state = carry  # bool [n], int32 [slots * r], state
        value = jnp.where(free, weigh(turn, state), -jnp.inf)
        # The first of the largest values; argmax takes four times as long on a CPU.
        unit = jnp.min(jnp.where(value == jnp.max(value), index, n))
        chosen = chosen.at[turn].set(jnp.where(turn < turns, unit, -1))
        return free & (index != unit), chosen, taken(turn, unit, state)

    free = (index >= span.first) & (index < span.last)
    unassigned = jnp.full(slots * num_columns, -1, jnp.int32)
    turns = jnp.asarray(span.last) - span.first
    # Every width takes the same number of rounds, so devices need not agree on when to stop.
    _, chosen, _ = jax.lax.fori_loop(0, span.most, choose, (free, unassigned, state))
    chosen = chosen.reshape(slots, num_columns).T  # [r, slots]
    return jnp.maximum(chosen, 0), chosen >= 0
