"""The rule 'band': each row keeps one of 2^b units per column, so a weight takes b mask bits.

`construction.trellis` describes the masks, and docs/bits.md lists their errors.
"""

from slth_jax import checks
from slth_jax.construction.rules.proof import in_order
from slth_jax.construction.rules.rule import Rule
from slth_jax.construction.trellis import Band


def band(bits: int = 4, states: int = 12) -> Rule:
    """Return the rule 'band', in which each row keeps one of the 2^bits units of each column.

    Args:
      bits: b, the number of mask bits per weight. The source should have ``2^b`` units per column.
        If the source has fewer, each row chooses among m units per column, where m is the largest
        power of two for which there are enough units.
      states: the base-2 logarithm of the number of search states. Each hidden unit is connected to
        ``L = 1 + states // bits`` columns. The time per weight grows as ``2^(b L)``, while the
        error falls only slowly as L grows.

    Raises:
      ValueError: `bits` is outside [1, 12], or `states` is outside [0, 16].
    """
    bits = checks.integer("bits", bits, low=1, high=12)
    states = checks.integer("states", states, low=0, high=16)
    return Rule(
        "band",
        "one of 2^b units per column and row, by a shortest path: b mask bits per weight",
        in_order,
        band=Band(bits, 1 + states // bits),
    )


RULE = band()
