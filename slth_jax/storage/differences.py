"""Find the first element in which two configurations differ."""

import reprlib
from collections.abc import Collection, Mapping
from typing import Any

MISSING = object()


def difference(
    stored: Any,
    new: Any,
    *,
    at: str = "",
    grows: Collection[str] = (),
    ignores: Collection[str] = (),
) -> tuple[str, Any, Any] | None:
    """Return the path of the first difference and the two values at that path; None if equal.

    Args:
      stored, new: values that JSON can store.
      at: the path of `stored` and `new` in the whole configuration; '' if they are the whole.
      grows: paths at which the list in `new` may be longer than the list in `stored`, provided that
        the longer list begins with all entries of the shorter list. At these paths an integer n
        stands for the list 0 ... n - 1.
      ignores: paths at which values are not compared.

    Returns:
      The path, such as 'grid.width[2]', and the values in `stored` and `new`; `MISSING` stands for
      an absent value.
    """
    if at and at in ignores:
        return None
    if at and at in grows and _begins(new, stored):
        return None
    if isinstance(stored, Mapping) and isinstance(new, Mapping):
        names = [*new, *(name for name in stored if name not in new)]
        pairs = [
            (f"{at}.{name}" if at else str(name), stored.get(name, MISSING), new.get(name, MISSING))
            for name in names
        ]
    # For a list that may grow, all entries are shown, not only the first that differs.
    elif isinstance(stored, list) and isinstance(new, list) and (not at or at not in grows):
        length = max(len(stored), len(new))
        left, right = ([*side, *[MISSING] * (length - len(side))] for side in (stored, new))
        pairs = [(f"{at}[{i}]", left[i], right[i]) for i in range(length)]
    else:
        return None if stored == new else (at, stored, new)
    inner = (difference(a, b, at=p, grows=grows, ignores=ignores) for p, a, b in pairs)
    return next((parts for parts in inner if parts is not None), None)


def _begins(longer: Any, shorter: Any) -> bool:
    """Return whether the list `longer` begins with the list `shorter`."""
    lists = [list(range(side)) if type(side) is int else side for side in (longer, shorter)]
    if not all(isinstance(side, list) for side in lists):
        return False
    return lists[0][: len(lists[1])] == lists[1]


def without(value: Any, places: Collection[str], *, at: str = "") -> Any:
    """Return nested mappings without the entries at the given paths, such as 'plan.seeds'."""
    if not isinstance(value, Mapping):
        return value
    kept = {}
    for name, entry in value.items():
        place = f"{at}.{name}" if at else str(name)
        if place not in places:
            kept[name] = without(entry, places, at=place)
    return kept


def explain(parts: tuple[str, Any, Any], stored: Any = None, new: Any = None) -> str:
    """Describe a result of `difference` in words; the arguments `stored` and `new` are ignored."""
    place, *values = parts
    before, now = map(_short, values)
    return f"{place} is {before} there and {now} here"


def _short(value: Any) -> str:
    """Return a value as text; long lists, mappings and strings are shortened."""
    short = reprlib.Repr()
    short.maxlist = short.maxdict = 6
    short.maxstring = short.maxother = 60
    return "missing" if value is MISSING else short.repr(value)
