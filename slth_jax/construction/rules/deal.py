"""What a rule is: a way to deal hidden units to the columns of the grouped factor."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from slth_jax import checks
from slth_jax.types import Array, ArrayLike


class Deal(NamedTuple):
    """Which hidden unit of ``right [n, r]`` serves which of its columns.

    Columns stand in `blocks` blocks of ``c = ceil(r / blocks)`` neighbours. A unit in a slot is
    connected to its own column; a shift unit to every column of its block.
    """

    units: Array  # int32 [r, slots], the unit in each slot of each column
    filled: Array  # bool [r, slots], whether the slot holds one; the empty slots come last
    shift: Array  # int32 [blocks, R], the shift units of each block; -1 for none

    @property
    def columns(self) -> int:
        """The number of columns of a block, c."""
        return -(-self.units.shape[-2] // self.shift.shape[-2])


# ``choose(right [n, r], first, last, most)`` fills the slots with the units of [first, last), of
# which there are at most `most`: the arrays `units` and `filled` of a `Deal`.
Choose = Callable[[Array, ArrayLike, ArrayLike, int], tuple[Array, Array]]
# The same with a look at the target: ``fit(left [p, n], right [n, r], target [p, r], first, last,
# most)``.
Fit = Callable[[Array, Array, Array, ArrayLike, ArrayLike, int], tuple[Array, Array]]


@dataclasses.dataclass(frozen=True)
class Rule:
    """A construction: who serves whom, and how often a row may try again.

    Attributes:
      name: what callers write.
      summary: one line.
      choose: deals units to columns, see `Choose`.
      across_relu: how it deals where a ReLU stands between the factors; None for `choose`.
      either_side: whether the factor with the smaller outer dimension is the grouped one.
      shift_units: R, units connected to all columns of a block. Each row keeps or drops each of
        them, which moves its targets there by one of 2^R shifts.
      columns: c, the most columns in a block.
      reroll: the share of each row's blocks that is solved at a time. A row solves its blocks
        once, then `rerolls` times this share: always the blocks that are worst so far, each
        with its next shift. 1 tries every shift in every block.
      rerolls: None for ``2^R - 1``.
      centred: a block's shifts are tried in the order of how well they centre its targets: of
        column j, whose samples sum to 2 mu and their squares to 4 sigma^2, the largest
        ``(v_j - mu_j)^2 / sigma_j^2`` of the shifted targets v_j. Sums lie densest about mu, so
        the first few shifts are nearly always the best. Otherwise by number.
      fit: deals units in place of `choose`, with a look at the target; None for none.
      fit_across_relu: the same where a ReLU stands between the factors.
    """

    name: str
    summary: str
    choose: Choose
    across_relu: Choose | None = None
    either_side: bool = False
    shift_units: int = 0
    columns: int = 1
    reroll: float = 1.0
    rerolls: int | None = None
    centred: bool = False
    fit: Fit | None = None
    fit_across_relu: Fit | None = None

    def for_relu(self) -> "Rule":
        """Return the rule for products with a ReLU between the factors: nothing can be shifted."""
        choose = self.across_relu or self.choose
        plain: dict[str, Any] = {"shift_units": 0, "columns": 1, "reroll": 1.0, "rerolls": None}
        fit = self.fit_across_relu
        return dataclasses.replace(self, choose=choose, centred=False, fit=fit, **plain)

    def deal(
        self,
        right: Array,
        width: ArrayLike,
        *,
        left: Array | None = None,
        target: Array | None = None,
    ) -> Deal:
        """Deal the first `width` rows of ``right [n, r]``; `width` may be traced.

        A rule with `fit` looks at ``left [p, n]`` and ``target [p, r]`` too.

        Shift units are the first ``R blocks`` rows. Each block has fewer of them where they would
        be more than a quarter of all units, or leave a column without one.
        """
        n, r = right.shape
        choose = self._chooser(left, target)
        if not self.shift_units:
            return Deal(*choose(right, 0, width, n), jnp.zeros((1, 0), jnp.int32))
        blocks = -(-r // self.columns)
        rounds = self._rounds(jnp.asarray(width), r, blocks)
        every = np.arange(n + 1)
        most = int(np.max(every - blocks * self._rounds(every, r, blocks)))
        units, filled = choose(right, blocks * rounds, width, most)
        u = jnp.arange(self.shift_units, dtype=jnp.int32)[None, :]
        b = jnp.arange(blocks, dtype=jnp.int32)[:, None]
        return Deal(units, filled, jnp.where(u < rounds, blocks * u + b, -1))

    def _chooser(self, left: Array | None, target: Array | None) -> Choose:
        """Return `choose`, or `fit` of this target."""
        fit = self.fit
        if fit is None:
            return self.choose
        if left is None or target is None:
            raise checks.fail("construction", "a rule that needs no target here", self.name)
        return lambda right, first, last, most: fit(left, right, target, first, last, most)

    def _rounds(self, width, r: int, blocks: int):
        """Return the shift units of each block at some widths."""
        room = (width - r) // blocks
        quarter = width // (4 * blocks)
        return (room * (room < quarter) + quarter * (room >= quarter)).clip(0, self.shift_units)
