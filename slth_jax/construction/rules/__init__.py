"""Rules of construction: each is one record (`deal.Rule`), one file here and one row of `RULES`.

A rule deals the hidden units of the grouped factor to its columns (`Rule.deal` -> `Deal`); the
engine (`construction.matrices`) turns that into subset sums, and kept samples into masks.
"""

from slth_jax import checks
from slth_jax.construction.rules import fitted, proof, reach, shift_units
from slth_jax.construction.rules.deal import Deal, Rule
from slth_jax.construction.rules.shift_units import shift

RULES: dict[str, Rule] = {
    rule.name: rule for rule in (proof.RULE, reach.RULE, shift_units.RULE, fitted.RULE)
}


def get(construction: str | Rule) -> Rule:
    """Return the rule of a name; a rule as it is.

    Raises:
      ValueError: no rule has that name.
    """
    if isinstance(construction, Rule):
        return construction
    return RULES[checks.choice("construction", construction, RULES)]


def parse(text: str) -> Rule:
    """Return the rule that a user typed: a name, or 'shift:R,C' for R units a block of C columns.

    Raises:
      ValueError: it is neither.
    """
    name, colon, numbers = text.partition(":")
    if not colon:
        return get(name)
    units, comma, columns = numbers.partition(",")
    if name != "shift" or not (comma and units.isdigit() and columns.isdigit()):
        raise checks.fail("construction", f"one of {', '.join(RULES)} or shift:R,C", repr(text))
    return shift(int(units), int(columns), 0.125)


__all__ = ["RULES", "Deal", "Rule", "get", "parse", "shift"]
