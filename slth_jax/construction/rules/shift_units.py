"""Assign units by size, and add shift units with which rows re-roll their worst targets.

All settings of shift units are in this file: `SEARCH` for the rules 'shift' and 'fitted', `shift`
for other numbers, and `for_samples` for whole models.
"""

import dataclasses

from slth_jax.construction.rules.by_size import by_signed_size, by_size
from slth_jax.construction.rules.rule import Rule, Search

# After one solve of every block, a quarter of the blocks is solved again, eight times: three solves
# per target in all. Patterns that centre the targets come first, so more patterns hardly help.
SEARCH = Search(shift_units=8, columns=8, reroll=0.25, rerolls=8, centred=True)

RULE = Rule(
    "shift",
    "by size, with shift units that re-roll a row's worst targets",
    by_size,
    assign_relu=by_signed_size,
    search=SEARCH,
    either_side=True,
)


def shift(
    shift_units: int,
    columns: int,
    reroll: float = 0.125,
    *,
    rerolls: int | None = None,
    centred: bool = False,
) -> Rule:
    """Return the rule 'shift' with R shift units per block of c columns; see `Search`."""
    search = Search(shift_units, columns, reroll, rerolls, centred)
    return dataclasses.replace(RULE, search=search)


def for_samples(samples: int, *, many: bool = False) -> Rule:
    """Return the rule with the best measured settings for a number of samples per entry.

    Fewer samples approximate an entry less well and are solved faster, which pays for more
    re-rolls. If there are `many` entries, the settings take five solves per entry.
    """
    if many:
        return shift(5, 5)
    if samples >= 18:
        return shift(8, 8, rerolls=24)
    return shift(10, 10, rerolls=160)
