"""Convert a user's model to named arrays, and its losses to functions of named arrays."""

import dataclasses
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from slth_jax import checks
from slth_jax.edge_popup import forms
from slth_jax.edge_popup.schedule import VECTORS
from slth_jax.edge_popup.scores import Keep
from slth_jax.edge_popup.variants import Variant
from slth_jax.types import Key, PyTree

Choose = Callable[[str, Array], bool]
Loss = Callable[..., Any]
Arrays = dict[str, Shaped[Array, "..."]]


class Stateful(NamedTuple):
    """A model with mutable state: batch statistics, counters, random keys.

    The loss of a `Stateful` model is ``loss(params, state, batch, key) -> (loss, state)``. The
    evaluation of a `Stateful` model is ``evaluate(params, state, batch)``, which does not change
    the state.
    """

    params: PyTree
    state: PyTree


@dataclasses.dataclass(frozen=True)
class Masking:
    """The choice of the arrays to mask, and the form of edge-popup.

    Attributes:
      variant: a form of edge-popup, or the name of a form in `VARIANTS`.
      mask: ``mask(name, array)`` returns whether an array is masked. If `mask` is None, all
        floating-point arrays of two or more dimensions are masked, except arrays whose name ends in
        'bias', 'scale' or 'gain'. The name of an array is its path in the tree, such as
        'layers.0.kernel'.
      learn: ``learn(name, array)`` returns whether an array without a mask is trained. If `learn`
        is None, arrays without a mask are not trained, so biases and gains keep their values.
      fan_in: a dict from the name of an array to its number of inputs per output, on which the
        scale of the initial scores depends. `fan_in` needs an entry only for an array whose last
        axis is not the output axis.
    """

    variant: Variant | str = "ramanujan"
    mask: Choose | None = None
    learn: Choose | None = None
    fan_in: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for name in ("mask", "learn"):
            if getattr(self, name) is not None:
                checks.function(name, getattr(self, name))
        for name, count in checks.record("fan_in", self.fan_in, Mapping).items():
            checks.integer(f"fan_in[{name!r}]", count, low=1)


@runtime_checkable
class Kind(Protocol):
    """The conversion of one kind of model to named arrays and mutable state, and back."""

    names: tuple[str, ...]

    def split(self, model: Any) -> tuple[Arrays, PyTree]:
        """Return a dict of the parameters by name, and the mutable state or None."""

    def join(self, named: Mapping[str, Any], state: PyTree) -> Any:
        """Return the model with these parameters and this state."""

    def masks(self, named: Mapping[str, Any]) -> PyTree:
        """Return the masks in a tree like the parameters', with None for arrays without a mask."""

    def loss(self, loss: Loss, named: Arrays, *rest: Any) -> Any:
        """Call the user's loss with the arguments that `step` passes."""

    def evaluate(self, evaluate: Loss | None, loss: Loss) -> Loss | None:
        """Return an evaluation function for `Task`.

        Return None if `evaluate` is None and `loss` cannot be used for an evaluation.
        """


class Tree:
    """The conversion of a model without state, whose parameters are a tree of arrays."""

    def __init__(self, tree: PyTree):
        self.names = tuple(_named(tree))
        self._structure = jax.tree.structure(tree)
        _refuse_state(tree)

    def split(self, model: PyTree) -> tuple[Arrays, None]:
        """Return a dict of the parameters by name, and None for the state."""
        named = _named(model)
        if tuple(named) != self.names:
            raise checks.fail("params", f"a tree with leaves {list(self.names)}", list(named))
        return {name: _array(name, leaf) for name, leaf in named.items()}, None

    def join(self, named: Mapping[str, Any], state: None = None) -> PyTree:
        """Return the user's tree with these named arrays."""
        return jax.tree.unflatten(self._structure, [named[name] for name in self.names])

    def masks(self, named: Mapping[str, Any]) -> PyTree:
        """Return the masks in a tree like the user's, with None for arrays without a mask."""
        return self.join(named)

    def loss(self, loss: Loss, named: Arrays, batch: PyTree) -> Array:
        """Return the user's loss for these parameters."""
        return loss(self.join(named), batch)

    def evaluate(self, evaluate: Loss | None, loss: Loss) -> Loss:
        """Return `evaluate` (`loss` if `evaluate` is None) as a function of named arrays."""
        return lambda named, batch: (evaluate or loss)(self.join(named), batch)


class StatefulTree:
    """The conversion of a `Stateful` model; random keys in its state become uint32 arrays."""

    def __init__(self, model: Stateful):
        self._params = Tree(model.params)
        self.names = self._params.names
        self._keys = jax.tree.map(_key_impl, model.state)

    def split(self, model: Stateful) -> tuple[Arrays, PyTree]:
        """Return a dict of the parameters by name, and the state."""
        named, _ = self._params.split(model.params)
        return named, self._plain(jax.tree.map(jnp.asarray, model.state))

    def join(self, named: Mapping[str, Any], state: PyTree) -> Stateful:
        """Return the user's trees with these parameters and this state."""
        return Stateful(self._params.join(named), self._typed(state))

    def masks(self, named: Mapping[str, Any]) -> PyTree:
        """Return the masks in a tree like the parameters', with None for arrays without a mask."""
        return self._params.join(named)

    def loss(
        self, loss: Loss, named: Arrays, state: PyTree, batch: PyTree, key: Key
    ) -> tuple[Array, PyTree]:
        """Return the user's loss and the next state."""
        result = loss(self._params.join(named), self._typed(state), batch, key)
        if not isinstance(result, tuple) or len(result) != 2:
            allowed = "a function that returns (loss, state)"
            raise checks.fail("loss", allowed, forms.form_of(result))
        return result[0], self._plain(result[1])

    def evaluate(self, evaluate: Loss | None, loss: Loss) -> Loss | None:
        """Return `evaluate` as a function of named arrays; return None if `evaluate` is None.

        The loss cannot replace a missing `evaluate`, because the loss changes the state.
        """
        if evaluate is None:
            return None
        return lambda named, state, batch: evaluate(*self.join(named, state), batch)

    def _plain(self, state: PyTree) -> PyTree:
        """Return the state with its random keys converted to uint32 arrays, which can be saved."""
        return jax.tree.map(lambda x: jax.random.key_data(x) if _key_impl(x) else x, state)

    def _typed(self, state: PyTree) -> PyTree:
        """Return the state with its random keys converted back from uint32 arrays."""
        return jax.tree.map(
            lambda impl, x: jax.random.wrap_key_data(x, impl=impl) if impl else x, self._keys, state
        )


def is_draw(params: Any) -> bool:
    """Return whether `params` is a function that draws a model from a key, and not a model."""
    nnx = _flax()
    return callable(params) and not (nnx is not None and isinstance(params, nnx.Module))


def kind_of(model: Any) -> Kind:
    """Return the `Kind` that converts this model to named arrays and back."""
    if isinstance(model, Stateful):
        return StatefulTree(model)
    nnx = _flax()
    if nnx is not None and isinstance(model, nnx.Module):
        from slth_jax.edge_popup.flax_module import FlaxModule

        return FlaxModule(model)
    return Tree(model)


@dataclasses.dataclass(frozen=True)
class Parts:
    """A model's floating-point arrays by name: masked, trained without a mask, or neither."""

    masked: dict[str, tuple[int, ...]]
    learned: tuple[str, ...]
    others: tuple[str, ...]  # floating-point arrays that only a control trains


def parts_of(named: Arrays, masking: Masking) -> Parts:
    """Return which of the named arrays are masked, trained without a mask, or neither.

    Raises:
      ValueError: no array is masked, or an array that cannot be masked is chosen.
    """
    floating = {n: x for n, x in named.items() if jnp.issubdtype(x.dtype, jnp.floating)}
    choose = masking.mask or _is_matrix
    masked = {n: x.shape for n, x in floating.items() if choose(n, x)}
    if not masked:
        raise checks.fail("params", "a tree with at least one array to mask", list(named))
    for name, shape in masked.items():
        if len(shape) < 2:
            raise checks.fail(f"mask of {name!r}", "of an array of two dimensions", shape)
    for name in masking.fan_in:
        if name not in masked:
            raise checks.fail("fan_in", f"a dictionary by names in {sorted(masked)}", repr(name))
    rest = {n: x for n, x in floating.items() if n not in masked}
    learned = tuple(n for n, x in rest.items() if masking.learn and masking.learn(n, x))
    return Parts(masked, learned, tuple(n for n in rest if n not in learned))


def fraction(keep: Any, name: str = "keep") -> Any:
    """Convert a fraction to the Python float that has the same decimals in print.

    For example, a float32 of 0.29 becomes 0.29. A traced fraction is returned unchanged.

    Raises:
      ValueError: a fraction that is not traced is outside (0, 1].
    """
    if isinstance(keep, jax.core.Tracer) and keep.ndim == 0:
        return keep
    value = checks.number(name, keep, low=0, high=1, open_low=True)
    # The float32 nearest to 0.29 is 0.28999999; `num_kept` must see 0.29.
    return float(str(np.asarray(keep)[()])) if hasattr(keep, "dtype") else value


def by_name(keep: Keep, masked: Mapping[str, Any]) -> dict[str, Any]:
    """Return a dict from the name of each masked array to the fraction of it that is kept.

    Raises:
      ValueError: an array has no fraction or two fractions, or a name matches no array.
    """
    if not isinstance(keep, Mapping):
        return dict.fromkeys(masked, fraction(keep))
    result = {}
    for name in masked:
        chosen = [k for k in keep if name == k or name.startswith(f"{k}.")]
        if len(chosen) != 1:
            allowed = f"a dictionary with one entry for {name!r}"
            raise checks.fail("keep", allowed, f"entries {sorted(map(str, keep))}")
        result[name] = fraction(keep[chosen[0]], f"keep[{chosen[0]!r}]")
    for name in keep:
        if not any(array == name or array.startswith(f"{name}.") for array in masked):
            raise checks.fail("keep", f"a dictionary by names in {sorted(masked)}", repr(name))
    return result


def _key_impl(leaf: Any) -> str:
    """Return the name of a random key's implementation; '' if the leaf is not a random key."""
    is_key = jnp.issubdtype(getattr(leaf, "dtype", np.dtype(object)), jax.dtypes.prng_key)
    return str(jax.random.key_impl(leaf)) if is_key else ""


def _array(name: str, leaf: Any) -> Array:
    """Return a leaf of the parameters as an array."""
    try:
        return jnp.asarray(leaf)
    except (TypeError, ValueError):  # text, objects
        raise checks.fail(f"params[{name!r}]", "an array of numbers", repr(leaf)) from None


def _is_matrix(name: str, array: Float[Array, "..."]) -> bool:
    return array.ndim >= 2 and name.rpartition(".")[2] not in VECTORS


def _named(tree: PyTree) -> dict[str, Any]:
    """Return a tree's leaves in a dict whose keys are their paths; a Flax variable is one leaf."""
    nnx = _flax()
    variable = () if nnx is None else nnx.Variable
    leaves, _ = jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=lambda node: isinstance(node, variable)
    )
    named = {}
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        named[name] = leaf.get_value() if isinstance(leaf, variable) else leaf
    if len(named) < len(leaves):
        raise checks.fail("params", "a tree of leaves with different names", sorted(named))
    return named


def _refuse_state(tree: PyTree) -> None:
    """Refuse parameters that contain mutable state, because this state would never be updated."""
    nnx = _flax()
    kinds = set()
    if nnx is not None:
        variables = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, nnx.Variable))
        kinds = {type(v).__name__ for v in variables if isinstance(v, nnx.Variable)
                 if not isinstance(v, nnx.Param)}  # fmt: skip
    if isinstance(tree, Mapping) and "params" in tree:
        kinds |= {str(name) for name in tree if name != "params"}
    for leaf in jax.tree.leaves(tree):
        if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            kinds.add("PRNG keys")
    if kinds:
        allowed = "without state that the loss does not return (see `Stateful`, or a module itself)"
        raise checks.fail("params", allowed, ", ".join(sorted(kinds)))


def _flax() -> Any:
    """Return `flax.nnx` if it is already imported, else None; importing it would take a second."""
    return sys.modules.get("flax.nnx")
