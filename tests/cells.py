"""Cells of contract tables: the slow ones are left out of the README's command."""

from collections.abc import Iterable

import pytest


def cells(names: Iterable[str], *, fast: Iterable[str]) -> list:
    """Return `names` for `parametrize`; names that are not in `fast` are marked slow."""
    names, fast = list(names), set(fast)
    assert fast <= set(names), f"no such cell: {sorted(fast - set(names))}"
    return [pytest.param(n, marks=() if n in fast else pytest.mark.slow) for n in names]
