"""Dealt units and shift units: each row re-rolls the targets that it meets badly.

A shift unit is connected to a block of c columns. Row i keeps or drops each of its block's R shift
units: pattern s in {0, 1}^R turns its target j there into
``target_ij - sum_u s_u left_iu right_uj``, and each of these into an ordinary subset sum over the
units of column j. The row takes the best of the patterns that it tries. The masks stay masks over
unchanged weights, and the product is met exactly as it says; but it takes a linear map between the
two factors, so across a ReLU units are dealt by size and sign instead.
"""

from slth_jax import checks
from slth_jax.construction.rules.deal import Rule
from slth_jax.construction.rules.reach import by_size
from slth_jax.construction.rules.signs import by_signed_size


def shift(
    shift_units: int = 4,
    columns: int = 4,
    reroll: float = 0.25,
    *,
    rerolls: int | None = None,
    centred: bool = False,
) -> Rule:
    """Return the rule with R shift units for each block of c columns, see `Rule`."""
    return Rule(
        "shift",
        "by size, with shift units that re-roll a row's worst targets",
        by_size,
        across_relu=by_signed_size,
        either_side=True,
        shift_units=checks.integer("shift_units", shift_units, low=0, high=12),
        columns=checks.integer("columns", columns, low=1),
        reroll=checks.number("reroll", reroll, low=0, open_low=True, high=1),
        rerolls=None if rerolls is None else checks.integer("rerolls", rerolls, low=0),
        centred=centred,
    )


RULE = shift(8, 8, 0.25, rerolls=8, centred=True)
