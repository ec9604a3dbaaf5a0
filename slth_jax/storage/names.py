"""Convert trees to flat dicts, in which a leaf's name is its path, such as 'layers.0.w_q'."""

from collections.abc import Mapping
from typing import Any

import jax

from slth_jax import checks
from slth_jax.types import PyTree


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """Return a dict from path, such as 'layers.0.w_q', to leaf; the path of a bare leaf is ''.

    Raises:
      ValueError: two leaves have the same path.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    named = {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
    if len(named) < len(leaves):
        raise checks.fail("tree", "of leaves with different names", sorted(named))
    return named


def nested(named: Mapping[str, Any]) -> Any:
    """Make a flat dict nested: {'a.b': x} becomes {'a': {'b': x}}, and {'': x} becomes x."""
    if list(named) == [""]:
        return named[""]
    tree: dict[str, Any] = {}
    for name, value in named.items():
        *outer, last = name.split(".")
        branch = tree
        for part in outer:
            branch = branch.setdefault(part, {})
        branch[last] = value
    return tree
