"""The first element in which two configurations differ."""

from collections.abc import Mapping
from typing import Any

MISSING = object()


def difference(there: Any, here: Any, *, at: str = "") -> tuple[str, Any, Any] | None:
    """Return the place of the first difference and what stands there in each, or None.

    Args:
      there, here: values in JSON's types.
      at: the name of the whole.

    Returns:
      The place, 'grid.width[2]', and both values; `MISSING` for one that is not there.
    """
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        for name in [*here, *(name for name in there if name not in here)]:
            place = f"{at}.{name}" if at else str(name)
            old, new = there.get(name, MISSING), here.get(name, MISSING)
            found = difference(old, new, at=place)
            if found is not None:
                return found
        return None
    if isinstance(there, list) and isinstance(here, list):
        for index in range(max(len(there), len(here))):
            old, new = (side[index] if index < len(side) else MISSING for side in (there, here))
            found = difference(old, new, at=f"{at}[{index}]")
            if found is not None:
                return found
        return None
    return None if there == here else (at, there, here)
