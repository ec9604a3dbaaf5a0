"""Units assigned by size, and shift units, with which rows re-roll their worst targets.

All settings of shift units are in this file: `SEARCH`, that of the rules named 'shift' and
'fitted'; `shift`, for other numbers; `for_samples`, for whole models.
"""

import dataclasses

from slth_jax.construction.rules.by_size import by_signed_size, by_size
from slth_jax.construction.rules.rule import Rule, Search

# A quarter of the blocks at a time, eight times: three solves per target in all. Patterns that
# centre the targets come first, so more of them hardly help.
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
    """Return the rule 'shift' with R shift units per block of c columns; arguments as `Search`."""
    search = Search(shift_units, columns, reroll, rerolls, centred)
    return dataclasses.replace(RULE, search=search)


def for_samples(samples: int, *, many: bool = False) -> Rule:
    """Return the setting that served best, among those measured, at so many samples per entry.

    Fewer samples approximate an entry less well and are solved faster, which pays for more
    re-rolls. For `many` entries, a setting of five solves per entry.
    """
    if many:
        return shift(5, 5)
    if samples >= 18:
        return shift(8, 8, rerolls=24)
    return shift(10, 10, rerolls=160)
