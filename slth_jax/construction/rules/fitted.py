"""Shift units, and units dealt by how well their weights suit the targets of a column.

A column whose targets are small wants small samples: its 2^m sums then lie dense about them. One
whose targets are large wants the largest. So units go to the column to whose suitable size
(`Rule.fit`) their weight is closest; where no weight is large enough, this is dealing by size. The
assignment depends on the target, so a ticket must hold both masks.
"""

import dataclasses

from slth_jax.construction.rules import shift_units

RULE = dataclasses.replace(
    shift_units.RULE,
    name="fitted",
    summary="by how well the size of the weights suits the targets, with shift units",
    fit=0.6,  # 0.4 to 0.8 differ little; with less, large targets are out of reach more often
)
