"""Convert a Flax NNX module to named arrays and mutable state, and back."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Shaped

from slth_jax import checks, storage
from slth_jax.types import Key, PyTree

Loss = Callable[..., Any]


class FlaxModule:
    """The conversion of an `nnx.Module` to named arrays and mutable state, and back (a `Kind`).

    The parameters are the module's `nnx.Param`. All other variables (batch statistics, counters and
    keys of dropout) are the mutable state, which is carried from step to step.
    """

    def __init__(self, module: nnx.Module):
        graph, params, rest = _split(module)
        self._graph = graph
        self._paths = {_name(path): path for path, _ in nnx.to_flat_state(params)}
        self._rest = {_name(path): path for path, _ in nnx.to_flat_state(rest)}
        self._keys = {
            name: jax.random.key_impl(value)
            for name, value in _values(rest).items()
            if jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
        }
        self.names = tuple(self._paths)

    def split(
        self, model: nnx.Module
    ) -> tuple[dict[str, Shaped[Array, "..."]], dict[str, Shaped[Array, "..."]]]:
        """Return parameters and state as two dicts by name; random keys become uint32 arrays."""
        _, params, rest = _split(model)
        named, state = _values(params), _values(rest)
        if tuple(named) != self.names or state.keys() != self._rest.keys():
            allowed = f"a module with variables {[*self.names, *self._rest]} at every call"
            raise checks.fail("params", allowed, [*named, *state])
        for name in self._keys:
            state[name] = jax.random.key_data(state[name])
        return named, state

    def join(self, named: Mapping[str, Any], state: Mapping[str, Any]) -> nnx.Module:
        """Return a module with these parameters and this state."""
        rest = dict(state)
        for name, impl in self._keys.items():
            rest[name] = jax.random.wrap_key_data(rest[name], impl=impl)
        params = nnx.from_flat_state([(path, named[n]) for n, path in self._paths.items()])
        others = nnx.from_flat_state([(path, rest[n]) for n, path in self._rest.items()])
        return nnx.merge(self._graph, params, others)

    def masks(self, named: Mapping[str, Any]) -> dict[str, Any]:
        """Return the masks in nested dictionaries; arrays without a mask are left out."""
        return storage.nested({name: mask for name, mask in named.items() if mask is not None})

    def loss(
        self, loss: Loss, named: Mapping[str, Any], state: PyTree, batch: PyTree, key: Key
    ) -> tuple[Array, PyTree]:
        """Return the user's loss, and the module's state after the loss was computed."""
        module = self.join(named, state)
        value = loss(module, batch)
        return value, self.split(module)[1]

    def evaluate(self, evaluate: Loss | None, loss: Loss) -> Loss:
        """Return a function that calls `evaluate` on the module after ``.eval()``.

        If `evaluate` is None, the function calls `loss`.
        """

        def call(named: Mapping[str, Any], state: PyTree, batch: PyTree) -> Any:
            module = self.join(named, state)
            module.eval()
            return (evaluate or loss)(module, batch)

        return call


def _split(module: nnx.Module) -> Any:
    return nnx.split(module, nnx.Param, ...)


def _name(path: tuple) -> str:
    return ".".join(map(str, path))


def _values(state: Any) -> dict[str, Array]:
    return {_name(path): jnp.asarray(value_of(leaf)) for path, leaf in nnx.to_flat_state(state)}


def value_of(leaf: Any) -> Any:
    """Return the value of a Flax variable; return anything else, such as an array, unchanged."""
    return leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf
