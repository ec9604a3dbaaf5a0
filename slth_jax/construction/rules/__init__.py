"""Define the rules that assign hidden units to columns; `RULES` maps names to default rules."""

from slth_jax import checks
from slth_jax.construction.rules import band as bands
from slth_jax.construction.rules import by_size, fitted, proof, shift_units
from slth_jax.construction.rules.band import band
from slth_jax.construction.rules.rule import Assignment, Rule, Search
from slth_jax.construction.rules.shift_units import for_samples, shift
from slth_jax.construction.rules.sparse import sparse

RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (proof.RULE, by_size.RULE, shift_units.RULE, fitted.RULE, bands.RULE)
}


def get(construction: str | Rule) -> Rule:
    """Return the rule with the name `construction`; return a `Rule` unchanged.

    Raises:
      ValueError: no rule has the name `construction`.
    """
    if isinstance(construction, Rule):
        return construction
    return RULES[checks.choice("construction", construction, RULES)]


def parse(text: str) -> Rule:
    """Parse a rule's name, or 'shift:R,C' for the rule with R shift units per block of C columns.

    Raises:
      ValueError: `text` is neither a rule's name nor of the form 'shift:R,C'.
    """
    name, colon, numbers = text.partition(":")
    if not colon:
        return get(name)
    units, comma, columns = numbers.partition(",")
    if name != "shift" or not (comma and units.isdigit() and columns.isdigit()):
        raise checks.fail("construction", f"one of {', '.join(RULES)} or shift:R,C", repr(text))
    return shift(int(units), int(columns))


__all__ = [
    "RULES",
    "Assignment",
    "Rule",
    "Search",
    "band",
    "for_samples",
    "get",
    "parse",
    "shift",
    "sparse",
]
