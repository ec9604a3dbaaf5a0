"""Turn scores into masks, and masks into masked parameters, in dicts from name to array.

A run may be a *control*, which trains weights under a fixed mask. In a control the weights and the
scores are exchanged: `State.weights` holds the scores that determine the mask, and the optimiser
changes the weights. Because of this exchange, one program can train tickets and controls.
"""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from slth_jax import checks
from slth_jax.edge_popup.variants import SCOPES, Variant, largest
from slth_jax.types import ArrayLike, Key, PyTree

Named = Mapping[str, Shaped[Array, "..."]]
Masks = dict[str, Bool[Array, "..."]]
# One fraction for all arrays, or a dict from array name to fraction.
Keep = ArrayLike | Mapping[str, ArrayLike]
# True if a run is a control; None in a program without controls.
Control = Bool[Array, ""] | None


class Trainable(NamedTuple):
    """The arrays that the optimiser changes: the scores by array name, and learned parameters.

    If there are no scores and all parameters are in `learned`, a step trains without masks.
    """

    scores: dict[str, Float[Array, "..."]]
    learned: dict[str, Float[Array, "..."]]


class State(NamedTuple):
    """The state of a run between two steps.

    Attributes:
      step: the number of finished steps.
      weights: the source weights (in a control, the scores); only re-drawing changes them.
      trainable: the arrays that the optimiser changes.
      opt_state: the optimiser's state.
      model: the model's mutable state (batch statistics, counters of dropout); None for a model
        without state.
    """

    step: Int[Array, ""]
    weights: dict[str, Shaped[Array, "..."]]
    trainable: Trainable
    opt_state: PyTree
    model: PyTree = None


# Controls are masked by these variants, whatever the variant of the other runs.
_PLAIN = {scope: Variant(scope=scope) for scope in SCOPES}


def init_scores(
    key: Key, weights: Named, variant: Variant, *, fan_in: Mapping[str, int] | None = None
) -> dict[str, Float[Array, "..."]]:
    """Draw the initial scores, one per entry of each array of `weights`, in the array's dtype.

    The scores of float16 weights are float32. In float16 an optimiser's small constants, such as
    Adam's 1e-8, would be 0, and the score of a connection without gradient would become 0 / 0.

    Args:
      key: a typed PRNG key. The index of each array among the sorted names is folded into `key`.
      weights: arrays of at least two dimensions.
      variant: the variant whose `init` draws the scores.
      fan_in: a dict from array name to the number of inputs per output. `fan_in` needs an entry
        only if `Variant.fan_in` would be wrong for the array.
    """
    scores = {}
    for index, name in enumerate(sorted(weights)):
        shape, dtype = weights[name].shape, weights[name].dtype
        checks.array(f"weights[{name!r}]", weights[name], min_ndim=2, finite=False)
        dtype = jnp.dtype(jnp.float32) if dtype == jnp.float16 else dtype
        inputs = (fan_in or {}).get(name, variant.fan_in(shape))
        scores[name] = variant.init(jax.random.fold_in(key, index), shape, dtype, inputs)
    return scores


def masks(key: Key | None, scores: Named, weights: Named, keep: Keep, variant: Variant) -> Masks:
    """Return masks that keep the highest-ranked connections, per array or among all arrays.

    Args:
      key: a typed PRNG key for variants that sample masks; None for other variants.
      scores, weights: dicts from name to array; weights may have names that scores lack.
      keep: the fraction kept, or a dict from array name to fraction.
      variant: the form of edge-popup, which turns scores into masks.

    Raises:
      ValueError: `keep` is outside (0, 1], or is a dict although the scope is 'global'.
    """
    source = {name: weights[name] for name in scores} if weights else dict(scores)
    if variant.scope == "global":
        if isinstance(keep, Mapping):
            raise checks.fail("keep", "one fraction if scope is 'global'", sorted(keep))
        return _checked(variant.masks(key, dict(scores), source, keep), dict(scores))
    places = {name: index for index, name in enumerate(sorted(scores))}
    result = {}
    for name, value in scores.items():
        fraction = keep[name] if isinstance(keep, Mapping) else keep
        array_key = None if key is None else jax.random.fold_in(key, places[name])
        result[name] = _array_mask(array_key, value, source[name], fraction, variant)
    return _checked(result, dict(scores))


def _checked(masks: PyTree, scores: dict[str, Array]) -> Masks:
    """Return the masks of a variant; refuse masks that are not booleans in the scores' shapes."""
    forms = jax.tree.map(lambda mask: f"{mask.dtype}{list(mask.shape)}", masks)
    allowed = {name: f"bool{list(value.shape)}" for name, value in scores.items()}
    if forms != allowed:
        raise checks.fail("masks", f"a function that returns {allowed}", forms)
    return masks


def _array_mask(
    key: Key | None, scores: Array, weights: Array, keep: ArrayLike, variant: Variant
) -> Bool[Array, "..."]:
    """Return an array's mask; rank entries in the whole array or within each stacked matrix."""
    stack = scores.shape[:-2] if variant.scope == "matrix" else ()
    mask = functools.partial(variant.masks, keep=keep)
    if not stack:
        return mask(key, scores, weights)
    if key is not None:
        key = jax.random.split(key, stack)
    for _ in stack:
        mask = jax.vmap(mask)
    return mask(key, scores, weights)


def ticket(
    key: Key | None,
    weights: Named,
    trainable: Trainable,
    keep: Keep,
    variant: Variant,
    *,
    control: Control = None,
) -> dict[str, Shaped[Array, "..."]]:
    """Return the parameters that a run uses: weights times masks, and learned parameters.

    The result is differentiable with respect to `trainable`; `variant.through` defines the
    derivative.
    """
    scores, source = _places(weights, trainable, control)
    params = unmasked(weights, trainable, control)
    for name, mask in _masks(key, scores, source, keep, variant, control).items():
        factor = variant.through(scores[name], mask)
        if control is not None:
            factor = jnp.where(control, mask.astype(factor.dtype), factor)
        params[name] = source[name] * factor.astype(source[name].dtype)
    return params


def kept(
    key: Key | None, state: State, keep: Keep, variant: Variant, control: Control = None
) -> Masks:
    """Return the masks of a run in a given state (see `masks`)."""
    scores, source = _places(state.weights, state.trainable, control)
    return _masks(key, scores, source, keep, variant, control)


def masked(state: State, mask: Masks, control: Control = None) -> dict[str, Shaped[Array, "..."]]:
    """Return the parameters of a run under given masks."""
    _, source = _places(state.weights, state.trainable, control)
    params = unmasked(state.weights, state.trainable, control)
    return params | {
        name: source[name] * entries.astype(source[name].dtype) for name, entries in mask.items()
    }


def unmasked(
    weights: Named, trainable: Trainable, control: Control
) -> dict[str, Shaped[Array, "..."]]:
    """Return all parameters, with no mask applied.

    Some parameters are trained only in controls; in all other runs they keep the source's values.
    """
    params = {**weights, **trainable.learned}
    if control is not None:
        for name in weights.keys() & trainable.learned.keys():
            params[name] = jnp.where(control, trainable.learned[name], weights[name])
    return params


def _places(weights: Named, trainable: Trainable, control: Control) -> tuple[Named, Named]:
    """Return scores and weights of the masked arrays; a control stores these two exchanged."""
    moving = trainable.scores
    still = {name: weights[name] for name in moving}
    if control is None:
        return moving, still
    swap = functools.partial(jnp.where, control)
    return jax.tree.map(swap, still, moving), jax.tree.map(swap, moving, still)


def _masks(
    key: Key | None, scores: Named, source: Named, keep: Keep, variant: Variant, control: Control
) -> Masks:
    result = masks(key, scores, source, keep, variant)
    if control is None or variant.masks is largest:
        return result
    fixed = masks(None, scores, source, keep, _PLAIN[variant.scope])
    return jax.tree.map(functools.partial(jnp.where, control), fixed, result)


def redraw(
    key: Key, state: State, fresh: Named, keep: Keep, variant: Variant, control: Control = None
) -> State:
    """Re-draw the fraction `redraw_rate` of the dropped weights (IteRand, Chijiwa et al. 2021).

    Args:
      key: a typed PRNG key; it must differ between the steps at which weights are re-drawn.
      state: the state of a run; the weights of a control are not re-drawn.
      fresh: new weights from the source's distribution, drawn from another key.
      keep, variant, control: the arguments with which the run is trained.
    """
    weights = dict(state.weights)
    mask = kept(key, state, keep, variant, control)
    for index, name in enumerate(sorted(mask)):
        chosen = jax.random.bernoulli(
            jax.random.fold_in(key, index), variant.redraw_rate, mask[name].shape
        )
        chosen &= ~mask[name]
        if control is not None:
            chosen &= ~control
        weights[name] = jnp.where(chosen, fresh[name], weights[name])
    return state._replace(weights=weights)


def shuffled(key: Key, mask: Mapping[str, Array]) -> Masks:
    """Shuffle the entries of each matrix of a mask, to compare a ticket with a random mask."""
    result = {}
    for index, name in enumerate(sorted(mask)):
        matrices = mask[name].reshape(-1, *mask[name].shape[-2:])
        keys = jax.random.split(jax.random.fold_in(key, index), matrices.shape[0])
        moved = jax.vmap(lambda k, m: jax.random.permutation(k, m.reshape(-1)))(keys, matrices)
        result[name] = moved.reshape(mask[name].shape)
    return result
