"""The rule 'shift': assign units by magnitude; add shift units, which move a row's targets.

All settings of shift units are in this file. `SEARCH` contains the settings of the rules 'shift'
and 'fitted'. The function `shift` returns a rule with other settings, and `for_samples` chooses
settings for whole models.
"""

import dataclasses

from slth_jax.construction.rules.by_size import by_signed_size, by_size
from slth_jax.construction.rules.rule import Rule, Search

# Every block is solved once. Then, eight times, a quarter of the blocks is solved again. In all
# each target is solved three times on average. The patterns that centre the targets come first, so
# more patterns hardly help.
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
    """Return the rule 'shift' with `shift_units` shift units per block of `columns` columns.

    The class `Search` describes all arguments.
    """
    search = Search(shift_units, columns, reroll, rerolls, centred)
    return dataclasses.replace(RULE, search=search)


def for_samples(samples: int, *, many: bool = False) -> Rule:
    """Return the rule 'shift' with the best measured settings for a number of samples per entry.

    An entry with fewer samples has a larger error but is solved faster, so there is time to solve
    it again more often. Pass ``many=True`` if there are many entries: each entry is then solved
    about five times.
    """
    if many:
        return shift(5, 5)
    if samples >= 18:
        return shift(8, 8, rerolls=24)
    return shift(10, 10, rerolls=160)
