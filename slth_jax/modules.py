"""Flax NNX modules: `Supermask`, which masks any module by trained scores, and two models.

`Supermask` wraps a module. The matrices of the wrapped module become `Frozen` variables, each with
a `Score`. The wrapper is called and trained like the module itself::

    model = Supermask(CNN(rngs=rngs), keep=0.3, rngs=rngs)
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=Score)

    @nnx.jit
    def train_step(model, optimizer, x, y):
        loss, gradient = nnx.value_and_grad(loss_of, argnums=nnx.DiffState(0, Score))(model, x, y)
        optimizer.update(model, gradient)
        return loss

`edge_popup.fit` trains many masked models at once, adds control runs, and resumes if stopped.
"""

import math
from collections.abc import Callable, Mapping, MutableMapping, MutableSequence, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from slth_jax import attention, checks, edge_popup, initializers, models, storage
from slth_jax.edge_popup.flax_module import value_of
from slth_jax.edge_popup.model import Masking, by_name, fraction, parts_of
from slth_jax.edge_popup.variants import largest, largest_raw, variant_of
from slth_jax.types import ArrayLike, AttentionParams


class Frozen(nnx.Variable):
    """A source weight: random, and never trained."""


class Score(nnx.Param):
    """The trained scores of one array of weights, one score per entry."""


class Fraction(nnx.Variable):
    """A fraction of connections to keep, stored as an array so that JAX can trace it."""


class Supermask(nnx.Module):
    """A wrapper that freezes the matrices of a module and masks them by trained scores.

    Gradients pass straight through the masks to the scores. Biases, gains and other parameters stay
    `nnx.Param`. An optimiser with ``wrt=Score`` does not change these parameters, whereas an
    optimiser with ``wrt=nnx.Param`` trains them together with the scores. Batch statistics,
    dropout, ``.train()`` and ``.eval()`` work as in the original module. An array that several
    layers share has one mask.

    Args:
      model: the module to mask; the wrapper uses a copy of it.
      keep: the fraction of each array that is kept, or a dictionary of fractions whose keys are
        names of arrays or beginnings of names ('conv' for 'conv.kernel'). Fractions may be JAX
        arrays, which can be traced; traced fractions are rounded to millionths.
      rngs: the random streams. Initial scores are drawn from the stream 'params'. If the variant
        samples masks, the masks are drawn from the stream 'masks'.
      variant: a form of edge-popup, or the name of a form in `edge_popup.VARIANTS`. The variant's
        scope should be 'matrix' if arrays are stacks of matrices. If the scope is 'global', `keep`
        must be one fraction. Variants with `keep_at` or `redraw_every` depend on the step, and can
        only be used with `edge_popup.fit`.
      mask: a function ``mask(name, array)`` that returns whether a parameter is masked, see
        `edge_popup.Masking`.

    Raises:
      ValueError: a fraction is outside (0, 1], no array has a given name, no array is masked, or
        the variant depends on the step.
    """

    def __init__(
        self,
        model: nnx.Module,
        *,
        keep: ArrayLike | Mapping[str, ArrayLike],
        rngs: nnx.Rngs,
        variant: edge_popup.Variant | str = "ramanujan",
        mask: Callable[[str, Array], bool] | None = None,
    ):
        checks.record("model", model, nnx.Module)
        checks.record("rngs", rngs, nnx.Rngs)
        self.variant = variant_of(variant)
        if self.variant.redraw_every or self.variant.keep_at is not None:
            allowed = "a form without redraw_every and keep_at, which need the steps of `fit`"
            raise checks.fail("variant", allowed, f"redraw_every={self.variant.redraw_every}")
        graph, params, rest = _split(model)
        named = {_name(path): variable.get_value() for path, variable in params}
        masked = parts_of(named, Masking(mask=mask)).masked
        if any(isinstance(variable, (Frozen, Score)) for _, variable in params):
            raise checks.fail("model", "a module without a Supermask inside", type(model).__name__)
        self.keep: Any = _kept(keep, masked, self.variant)
        frozen = [
            (path, _retyped(v, Frozen, of=type(v)) if _name(path) in masked else v)
            for path, v in params
        ]
        self.model = _merge(graph, frozen, rest)
        weights = {name: named[name] for name in masked}
        if "params" not in rngs and "default" not in rngs:
            streams = [name for name, _ in rngs.items()]
            raise checks.fail("rngs", "with a stream 'params' for the first scores", streams)
        scores = edge_popup.init_scores(
            rngs.params(), weights, self.variant, fan_in=_fan_in(model, masked)
        )
        metadata = {_name(path): v.get_metadata() for path, v in params}
        self.scores = nnx.Dict({n: Score(x, **metadata[n]) for n, x in scores.items()})
        samples = self.variant.masks not in (largest, largest_raw)
        drawn = "masks" in rngs or (samples and "default" in rngs)
        self.rngs = nnx.Rngs(masks=rngs.masks()) if drawn else None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module with masked weights."""
        ticket = self.ticket()
        result = ticket(*args, **kwargs)
        self._take_state(ticket)
        return result

    def ticket(self) -> nnx.Module:
        """Return a plain module whose weights are multiplied by masks; scores receive gradients."""
        graph, params, rest = _split(self.model)
        weights = {_name(path): v.get_value() for path, v in params if isinstance(v, Frozen)}
        trainable = edge_popup.Trainable(self._scores(), {})
        masked = edge_popup.ticket(self._key(), weights, trainable, self._keep(), self.variant)
        plain = [
            (path, _plain(v, masked[_name(path)]) if isinstance(v, Frozen) else v)
            for path, v in params
        ]
        return _merge(graph, plain, rest)

    def masks(self) -> dict[str, Any]:
        """Return the masks as booleans, in nested dictionaries with the parameters' names."""
        _, params, _ = _split(self.model)
        weights = {_name(path): v.get_value() for path, v in params if isinstance(v, Frozen)}
        masks = edge_popup.masks(self._key(), self._scores(), weights, self._keep(), self.variant)
        return storage.nested(masks)

    def _scores(self) -> dict[str, Float[Array, "..."]]:
        return {name: score[...] for name, score in self.scores.items()}

    def _keep(self) -> Any:
        """Return the fraction to keep, or a dict from name to fraction, as numbers or arrays."""
        if not isinstance(self.keep, Mapping):
            return value_of(self.keep)
        return {name: value_of(share) for name, share in self.keep.items()}

    def _key(self) -> Array | None:
        return None if self.rngs is None else self.rngs.masks()

    def _take_state(self, ticket: nnx.Module) -> None:
        """After a call of `ticket`, copy its mutable state to the wrapped module."""
        before = dict(_split(self.model)[2])
        for path, leaf in _split(ticket)[2]:
            if path in before and value_of(leaf) is value_of(before[path]):
                continue
            if path in before and isinstance(leaf, nnx.Variable):
                before[path].set_value(leaf.get_value())
            else:  # stored by the call (`sow`), or an array outside a variable
                _set(self.model, path, leaf)


class Attention(nnx.Module):
    """The theory's multi-head attention, without biases.

    Queries and keys have width n_k, and values have width n_v.

    The weights are drawn by `initializers.theory_attention`.
    """

    def __init__(
        self, num_heads: int, d_in: int, d_out: int, *, n_k: int, n_v: int, rngs: nnx.Rngs
    ):
        checks.record("rngs", rngs, nnx.Rngs)
        drawn = initializers.theory_attention(
            rngs.params(), num_heads=num_heads, d_in=d_in, d_out=d_out, n_k=n_k, n_v=n_v
        )
        self.w_q, self.w_k = nnx.Param(drawn.w_q), nnx.Param(drawn.w_k)
        self.w_v, self.w_o = nnx.Param(drawn.w_v), nnx.Param(drawn.w_o)

    def arrays(self) -> AttentionParams:
        """Return the weights in the form that the functions in `attention` take."""
        return AttentionParams(self.w_q[...], self.w_k[...], self.w_v[...], self.w_o[...])

    def __call__(
        self, x: Float[Array, "*n t m"], attn_mask: Bool[Array, "t t"] | None = None
    ) -> Float[Array, "*n t o"]:
        """Return the output of attention for every sequence (see `attention.apply`)."""
        apply = lambda rows: attention.apply(self.arrays(), rows, attn_mask)  # noqa: E731
        for _ in x.shape[:-2]:
            apply = jax.vmap(apply)
        return apply(x)


class Decoder(nnx.Module):
    """A transformer of the subpackage `models` as a Flax NNX module.

    Each array stacks the matrices of all blocks, so a `Supermask` of a decoder needs a variant
    whose scope is 'matrix'.

    Args:
      params: a dict from name to array, as `models.initialise` or `models.weights` returns it. Each
        array becomes an `nnx.Param` in the attribute `params`.
      settings: the model's shape and form, see `models.Settings`.
      dtype: the dtype of the matrix products.
    """

    def __init__(
        self,
        params: Mapping[str, Float[Array, "..."]],
        settings: models.Settings,
        *,
        dtype: jax.typing.DTypeLike = jnp.float32,
    ):
        self.settings = settings
        self.dtype = dtype
        self.params = nnx.Dict({name: nnx.Param(value) for name, value in params.items()})

    def arrays(self) -> dict[str, Float[Array, "..."]]:
        """Return the parameters in the form that the functions in `models` take."""
        return {name: param[...] for name, param in self.params.items()}

    def __call__(self, tokens: Int[Array, "n t"]) -> Float[Array, "n t v"]:
        """Return the logits (see `models.apply`)."""
        return models.apply(self.arrays(), tokens, self.settings, dtype=self.dtype)

    def loss(self, tokens: Int[Array, "n t"]) -> Float[Array, ""]:
        """Return the mean cross-entropy over all tokens but the first (see `models.loss`)."""
        return models.loss(self.arrays(), tokens, self.settings, dtype=self.dtype)


Flat = list[tuple[tuple, Any]]  # (path, variable), or (path, array) for an array outside a variable


def _split(model: nnx.Module) -> tuple[Any, Flat, Flat]:
    """Return the graph, the parameters (including frozen parameters), and all other variables."""

    def is_parameter(path: tuple, value: Any) -> bool:
        return isinstance(value, (Frozen, nnx.Param))

    parts: Any = nnx.split(model, is_parameter, ...)
    graph, params, rest = parts
    return graph, list(nnx.to_flat_state(params)), list(nnx.to_flat_state(rest))


def _merge(graph: Any, params: Flat, rest: Flat) -> nnx.Module:
    """Return a module with copies of the variables, so that a call changes no other module."""

    def copies(variables: Flat) -> Any:
        return nnx.from_flat_state(
            [
                (path, _retyped(v, type(v)) if isinstance(v, nnx.Variable) else v)
                for path, v in variables
            ]
        )

    return nnx.merge(graph, copies(params), copies(rest))


def _retyped(variable: nnx.Variable, kind: type[nnx.Variable], **more: Any) -> Any:
    """Return a variable of another type with the same value and metadata, such as shardings."""
    return kind(variable.get_value(), **variable.get_metadata(), **more)


def _plain(frozen: Frozen, value: Array) -> nnx.Variable:
    """Return a variable with the value `value` and the type that `frozen` had before freezing."""
    metadata = frozen.get_metadata()
    kind = metadata.pop("of")
    return kind(value, **metadata)


def _kept(keep: Any, masked: Mapping[str, Any], variant: edge_popup.Variant) -> Any:
    """Check and return the fractions; JAX arrays become variables, so that they can be traced."""
    if not isinstance(keep, Mapping):
        checked = fraction(keep)
        return Fraction(jnp.asarray(keep)) if isinstance(keep, jax.Array) else checked
    if variant.scope == "global":
        raise checks.fail("keep", "one fraction if scope is 'global'", sorted(map(str, keep)))
    by_array = by_name(keep, masked)
    if not any(isinstance(value, jax.Array) for value in by_array.values()):
        return by_array
    return nnx.Dict({name: Fraction(jnp.asarray(value)) for name, value in by_array.items()})


def _set(module: nnx.Module, path: tuple, leaf: Any) -> None:
    """Set a value at a path through attributes, lists and dictionaries."""
    owner: Any = module
    for part in path[:-1]:
        owner = owner[part] if isinstance(owner, (Mapping, Sequence)) else getattr(owner, part)
    if isinstance(owner, (MutableMapping, MutableSequence)):
        owner[path[-1]] = leaf
    else:
        setattr(owner, path[-1], leaf)


def _name(path: tuple) -> str:
    return ".".join(map(str, path))


def _fan_in(model: nnx.Module, masked: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Return a dict from name to fan-in, for arrays whose shape does not determine the fan-in."""
    result = {}
    for path, module in nnx.iter_modules(model):
        prefix = "".join(f"{part}." for part in path)
        if isinstance(module, nnx.LinearGeneral):
            result[f"{prefix}kernel"] = math.prod(module.in_features)
        elif isinstance(module, nnx.Embed):
            result[f"{prefix}embedding"] = module.features
        elif isinstance(module, Attention):
            names = (f"{prefix}w_{letter}" for letter in "qkvo")
            result |= {name: masked[name][-2] for name in names if name in masked}
    return result
