"""The first element in which two configurations differ."""

import reprlib
from collections.abc import Collection, Mapping
from typing import Any

MISSING = object()


def difference(
    there: Any,
    here: Any,
    *,
    at: str = "",
    grows: Collection[str] = (),
    ignores: Collection[str] = (),
) -> tuple[str, Any, Any] | None:
    """Return the place of the first difference and the value of each side, or None.

    Args:
      there, here: values in JSON's types.
      at: the name of the whole.
      grows: places whose list may be longer in `here` than in `there`, if it begins with the same
        entries. A number n stands for the list 0 ... n - 1.
      ignores: places that are not compared.

    Returns:
      The place, 'grid.width[2]', and both values; `MISSING` for an absent value.
    """
    if at and at in ignores:
        return None
    if at and at in grows and _begins(here, there):
        return None
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        names = [*here, *(name for name in there if name not in here)]
        pairs = [
            (f"{at}.{name}" if at else str(name), there.get(name, MISSING), here.get(name, MISSING))
            for name in names
        ]
    elif isinstance(there, list) and isinstance(here, list):
        length = max(len(there), len(here))
        left, right = ([*side, *[MISSING] * (length - len(side))] for side in (there, here))
        pairs = [(f"{at}[{i}]", left[i], right[i]) for i in range(length)]
    else:
        return None if there == here else (at, there, here)
    if at in grows and at:  # the list as a whole says more than its first different entry
        return None if there == here else (at, there, here)
    for place, old, new in pairs:
        parts = difference(old, new, at=place, grows=grows, ignores=ignores)
        if parts is not None:
            return parts
    return None


def _begins(longer: Any, shorter: Any) -> bool:
    """Return whether the list `longer` begins with the list `shorter`."""
    lists = [list(range(side)) if type(side) is int else side for side in (longer, shorter)]
    if not all(isinstance(side, list) for side in lists):
        return False
    return lists[0][: len(lists[1])] == lists[1]


def without(value: Any, places: Collection[str], *, at: str = "") -> Any:
    """Return nested mappings without the entries at these places ('plan.seeds')."""
    if not isinstance(value, Mapping):
        return value
    kept = {}
    for name, entry in value.items():
        place = f"{at}.{name}" if at else str(name)
        if place not in places:
            kept[name] = without(entry, places, at=place)
    return kept


def explain(found: tuple[str, Any, Any], there: Any = None, here: Any = None) -> str:
    """Return the words for a result of `difference`; `there` and `here` are not needed."""
    place, *values = found
    before, now = map(_short, values)
    return f"{place} is {before} there and {now} here"


def _short(value: Any) -> str:
    """Return a value's text, long lists and mappings cut."""
    short = reprlib.Repr()
    short.maxlist = short.maxdict = 6
    short.maxstring = short.maxother = 60
    return "missing" if value is MISSING else short.repr(value)
