"""Check the dtypes and shapes of a user's arrays before `fit` compiles anything."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from slth_jax import checks
from slth_jax.types import PyTree


def of_tree(tree: PyTree) -> dict[str, str]:
    """Return a dict from the path of each array in a tree to a text with its dtype and shape."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): form_of(leaf)
        for path, leaf in leaves
    }


def check_batch(name: str, batch: PyTree) -> None:
    """Refuse a batch that contains anything but arrays and numbers."""
    leaves = jax.tree.leaves(batch)
    for leaf in leaves or [batch]:
        try:
            jax.eval_shape(lambda x: x, leaf)
            known = bool(leaves)
        except TypeError:  # text, objects
            known = False
        if not known:
            raise checks.fail(name, "a tree of arrays", repr(leaf))


def check_sources(sources: Sequence[tuple[PyTree, PyTree]]) -> None:
    """Refuse models if their arrays differ in dtype or shape between seeds."""
    forms = [of_tree(params) | of_tree(state) for params, state in sources]
    first = forms[0]
    for form in forms[1:]:
        if form != first:
            name = min(n for n in first | form if first.get(n) != form.get(n))
            allowed = f"a function that draws equal shapes: {name!r} of {first.get(name)}"
            raise checks.fail("params", allowed, str(form.get(name)))


def check_loss(loss: Callable[..., Any], state: PyTree, arguments: Sequence[PyTree]) -> None:
    """Refuse a loss that is not a scalar, or that changes the dtypes or shapes of the state."""
    result = jax.eval_shape(loss, *arguments)
    value, after = (result, None) if state is None else result
    if state is not None:
        before = of_tree(state)
        if (form := of_tree(after)) != before:
            name = min(n for n in before | form if before.get(n) != form.get(n))
            allowed = f"a function whose next state has {name!r} of {before.get(name)}"
            raise checks.fail("loss", allowed, str(form.get(name)))
    array = isinstance(value, jax.ShapeDtypeStruct)
    if not array or value.shape or not jnp.issubdtype(value.dtype, jnp.floating):
        raise checks.fail("loss", "a function that returns a floating-point scalar", form_of(value))


def form_of(value: Any) -> str:
    """Return a text: an array's dtype and shape, or the name of the type of any other value."""
    array = hasattr(value, "dtype")
    return f"{value.dtype}{list(value.shape)}" if array else type(value).__name__
