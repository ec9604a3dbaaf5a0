"""Compute fingerprints of all that affects a fit, so that another fit's folder is refused."""

import hashlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr

from slth_jax import storage
from slth_jax.distributed import whole
from slth_jax.types import PyTree

_ADDRESS = re.compile(r"0x[0-9a-f]+")  # the address of a function in a program's text


def of_arrays(tree: PyTree) -> str:
    """Return one SHA-256 of all arrays in a tree: their paths, dtypes, shapes and bytes."""
    named = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        array = jax.random.key_data(leaf) if is_key else leaf
        named[jax.tree_util.keystr(path)] = whole(array)
    return storage.array_hash(named)


def of_function(function: Callable[..., Any], *args: PyTree) -> str:
    """Return one SHA-256 of a function's traced program and of the constant arrays in this program.

    Args:
      function: a function whose result depends only on its arguments and on constants.
      args: the function's arguments, or their shapes.
    """
    traced = jax.make_jaxpr(function)(*args)
    digest = hashlib.sha256(_ADDRESS.sub("", str(traced.jaxpr)).encode())
    digest.update(of_arrays(_constants(traced)).encode())
    return digest.hexdigest()


def of_gradient(loss: Callable[..., Any], arrays: PyTree, *rest: PyTree) -> str:
    """Return one SHA-256 of a loss and its gradient, which a loss may define itself (custom_vjp).

    Args:
      loss: ``loss(arrays, *rest)`` returns a scalar, or a scalar and a state.
      arrays: a dict from name to array.
      rest: the loss's other arguments.
    """
    floating = {n: x for n, x in arrays.items() if jnp.issubdtype(x.dtype, jnp.floating)}

    def of_floating(moving: PyTree, *rest: PyTree) -> tuple[Any, Any]:
        result = loss({**arrays, **moving}, *rest)
        return result if isinstance(result, tuple) else (result, None)

    return of_function(jax.value_and_grad(of_floating, has_aux=True), floating, *rest)


def has_convolution(function: Callable[..., Any], *args: PyTree) -> bool:
    """Return whether a function of arrays computes a convolution."""
    traced = jax.make_jaxpr(function)(*args)
    return any(
        equation.primitive.name == "conv_general_dilated"
        for program in _programs(traced.jaxpr)
        for equation in program.eqns
    )


def _constants(traced: ClosedJaxpr) -> list[Any]:
    """Return the constant arrays in a program and in all programs nested in it."""
    arrays = list(traced.consts)
    for program in _programs(traced.jaxpr):
        for closed in _inside(program, ClosedJaxpr):
            arrays += closed.consts
    return arrays


def _programs(program: Jaxpr) -> Iterator[Jaxpr]:
    """Yield a program and all programs nested in it."""
    yield program
    for inner in _inside(program, (Jaxpr, ClosedJaxpr)):
        yield from _programs(inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner)


def _inside(program: Jaxpr, kinds: Any) -> Iterator[Any]:
    """Yield the programs nested directly in `program`, if their type is one of `kinds`."""
    for equation in program.eqns:
        for value in equation.params.values():
            for part in value if isinstance(value, (tuple, list)) else (value,):
                if isinstance(part, kinds):
                    yield part
