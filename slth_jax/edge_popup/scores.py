"""One step of edge-popup on named arrays, and its variants (Ramanujan et al. 2020).

Every connection has a score; the forward pass keeps the `num_kept` largest, and gradients reach
the scores straight through the mask. It works on any model whose parameters are a dictionary of
named arrays and any ``loss(params, batch) -> scalar``. Write for one run; lift over seeds and
settings with `jax.vmap`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from slth_jax import checks, supermask
from slth_jax.types import Array, ArrayLike, Key, PyTree

Named = Mapping[str, Array]
Loss = Callable[[dict[str, Array], PyTree], Array]
Find = Callable[[dict[str, Array], ArrayLike, "Variant"], dict[str, Array]]


@dataclasses.dataclass(frozen=True)
class Variant:
    """One of the forms of edge-popup in use.

    Attributes:
      init: scores start 'uniform' (Kaiming uniform with a = sqrt(5): ``U[-f, f]``,
        ``f = fan_in^(-1/2)``) or 'normal' (Kaiming normal: ``N(0, 2 / fan_in)``).
      magnitude: rank by |score|, with gradient ``g w sign(score)``; False ranks by the score
        itself, with gradient ``g w``.
      scope: one threshold per 'matrix' (last two axes) or one over the 'global' network.
      redraw_every: steps between re-drawings of weights that are not kept; 0 for never.
      redraw_rate: the share of them that is drawn anew each time.
    """

    init: str = "uniform"
    magnitude: bool = True
    scope: str = "matrix"
    redraw_every: int = 0
    redraw_rate: float = 0.1

    def __post_init__(self):
        checks.choice("init", self.init, ("uniform", "normal"))
        checks.choice("scope", self.scope, ("matrix", "global"))
        checks.integer("redraw_every", self.redraw_every, low=0)
        checks.number("redraw_rate", self.redraw_rate, low=0, high=1)


VARIANTS = {
    "ramanujan": Variant(),
    "kaiming_local": Variant(init="normal"),
    "kaiming_global": Variant(init="normal", scope="global"),
    "raw_score": Variant(magnitude=False),
    "iterand": Variant(redraw_every=300),
}
"""Named forms: the original (Ramanujan et al. 2020); Kaiming-normal scores ranked per matrix or
over the network (earlier code of the paper's authors); raw scores parted by their k-th value; and
the original with weights re-drawn (IteRand, Chijiwa et al. 2021)."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """AdamW with linear warm-up and cosine decay (paper, section 4).

    Attributes:
      steps: optimiser steps in all, warm-up included.
      warmup: steps of the linear warm-up from 0.
      final: last learning rate as a fraction of the highest; 0.1 in the paper.
      weight_decay: of AdamW, acting on the *scores*. The paper states none; PyTorch's default.
      b1, b2: decay rates of the two moments.
    """

    steps: int
    warmup: int = 0
    final: float = 0.1
    weight_decay: float = 0.01
    b1: float = 0.9
    b2: float = 0.999

    def __post_init__(self):
        checks.integer("steps", self.steps, low=1)
        checks.integer("warmup", self.warmup, low=0, high=self.steps - 1)
        checks.number("final", self.final, low=0, high=1)
        checks.number("weight_decay", self.weight_decay, low=0)

    def rate(self, step: ArrayLike) -> Array:
        """Return the learning rate before `step`'s update as a fraction of the highest."""
        return optax.warmup_cosine_decay_schedule(0.0, 1.0, self.warmup, self.steps, self.final)(
            step
        )

    def optimizer(self, learning_rate: ArrayLike) -> optax.GradientTransformation:
        """Return the optimiser; `learning_rate`, the highest, may be traced."""
        return optax.adamw(
            lambda step: learning_rate * self.rate(step),
            b1=self.b1,
            b2=self.b2,
            weight_decay=self.weight_decay,
        )


class Hparams(NamedTuple):
    """What may differ between runs of one compiled program."""

    keep: ArrayLike
    learning_rate: ArrayLike


class Trainable(NamedTuple):
    """What the optimiser sees: scores by the name of their matrix, and parameters that just learn.

    With no scores and all parameters `learned` this is ordinary training.
    """

    scores: dict[str, Array]
    learned: dict[str, Array]


class State(NamedTuple):
    """A run between two steps. `weights` is the source; only re-drawing ever changes it."""

    step: Array
    weights: dict[str, Array]
    trainable: Trainable
    opt_state: PyTree


def init_scores(
    key: Key, weights: Named, variant: Variant, *, fan_in: Mapping[str, int] | None = None
) -> dict[str, Array]:
    """Draw the first scores, one for every entry of every array of `weights`.

    Args:
      key: a typed PRNG key; each array draws from its own, folded from its place among the names.
      weights: arrays of at least two dimensions.
      variant: says how.
      fan_in: inputs of a matrix where that is not its second last axis, by name.
    """
    scores = {}
    for index, name in enumerate(sorted(weights)):
        shape, dtype = weights[name].shape, weights[name].dtype
        checks.array(f"weights[{name!r}]", weights[name], min_ndim=2, finite=False)
        inputs = (fan_in or {}).get(name, shape[-2])
        name_key = jax.random.fold_in(key, index)
        if variant.init == "uniform":
            bound = 1 / math.sqrt(inputs)
            scores[name] = jax.random.uniform(name_key, shape, dtype, -bound, bound)
        else:
            drawn = jax.random.normal(name_key, shape, dtype)
            scores[name] = drawn * jnp.asarray(math.sqrt(2 / inputs), dtype)
    return scores


def masks(scores: Named, keep: ArrayLike, variant: Variant) -> dict[str, Array]:
    """Return the masks of `scores`: the `num_kept` largest of each matrix, or of all together.

    Raises:
      ValueError: `keep` outside (0, 1].
    """
    if variant.scope == "global":
        return supermask.from_tree(dict(scores), keep, magnitude=variant.magnitude)
    return {name: _matrix_masks(value, keep, variant) for name, value in scores.items()}


def ticket(
    weights: Named,
    trainable: Trainable,
    keep: ArrayLike,
    variant: Variant,
    *,
    find: Find = masks,
) -> dict[str, Array]:
    """Return the parameters that a run uses: weights times masks, and what learns as it is.

    Differentiable with respect to `trainable`, straight through the masks, which `find` finds.
    """
    params = {**weights, **trainable.learned}
    for name, mask in find(trainable.scores, keep, variant).items():
        score = trainable.scores[name]
        if variant.magnitude:
            through = supermask.straight_through(score, mask)
        else:
            through = supermask.straight_through_raw(score, mask)
        params[name] = weights[name] * through.astype(weights[name].dtype)
    return params


def start(
    weights: Named, trainable: Trainable, recipe: Recipe, *, learning_rate: ArrayLike = 0.0
) -> State:
    """Return the state before the first step."""
    opt_state = recipe.optimizer(learning_rate).init(trainable)
    return State(jnp.int32(0), dict(weights), trainable, opt_state)


def step(
    state: State,
    batch: PyTree,
    hparams: Hparams,
    *,
    loss: Loss,
    recipe: Recipe,
    variant: Variant,
    accumulate: int = 1,
    find: Find = masks,
) -> tuple[State, dict[str, Array]]:
    """Make one optimiser step; the source weights pass through untouched.

    Args:
      state: as `start` made it.
      batch: what `loss` takes; with `accumulate` > 1 the leaves' first axis is split into so many
        parts, whose gradients are averaged.
      hparams: keep and learning rate; traced, so that a change of them compiles nothing.
      loss: ``loss(params, batch) -> scalar``, a mean over the batch.
      recipe, variant: static.
      accumulate: parts of a batch that go through the model one after another.
      find: ``find(scores, keep, variant) -> masks`` in the place of `masks`.

    Returns:
      The next state, and metrics `loss` (before the update) and `grad_norm`.

    Raises:
      ValueError: a variant that re-draws weights, which no step alone can do: `fit` and `train` do,
        or step with ``redraw_every=0`` and call `redraw` in between.
    """
    if variant.redraw_every:
        allowed = (
            "with redraw_every=0 in a step alone (`fit` re-draws; or call `redraw` in between)"
        )
        raise checks.fail("variant", allowed, f"redraw_every={variant.redraw_every}")

    def moving(trainable: Trainable) -> dict[str, Array]:
        params = ticket(state.weights, trainable, hparams.keep, variant, find=find)
        return {name: params[name] for name in (*trainable.scores, *trainable.learned)}

    params, pull = jax.vjp(moving, state.trainable)
    fixed = {name: value for name, value in state.weights.items() if name not in params}
    value, gradient = _gradient(
        lambda part, rows: loss({**fixed, **part}, rows), params, batch, accumulate
    )
    (gradient,) = pull(gradient)
    optimizer = recipe.optimizer(hparams.learning_rate)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.trainable)
    trainable = optax.apply_updates(state.trainable, updates)
    norm = optax.tree.norm(gradient)
    metrics = {"loss": value, "grad_norm": norm}
    return State(state.step + 1, state.weights, trainable, opt_state), metrics


def redraw(key: Key, state: State, fresh: Named, keep: ArrayLike, variant: Variant) -> State:
    """Draw anew `redraw_rate` of the weights that are not kept (IteRand, Chijiwa et al. 2021).

    Args:
      key: a typed PRNG key, another one for every step at which this is done.
      state: a run.
      fresh: weights from the same distribution as the source and another key.
      keep, variant: as in training.
    """
    weights = dict(state.weights)
    kept = masks(state.trainable.scores, keep, variant)
    for index, name in enumerate(sorted(kept)):
        chosen = jax.random.bernoulli(
            jax.random.fold_in(key, index), variant.redraw_rate, kept[name].shape
        )
        weights[name] = jnp.where(chosen & ~kept[name], fresh[name], weights[name])
    return state._replace(weights=weights)


def shuffled(key: Key, mask: Mapping[str, Array]) -> dict[str, Array]:
    """Return masks with the entries of each matrix in random order: a control for tickets."""
    result = {}
    for index, name in enumerate(sorted(mask)):
        matrices = mask[name].reshape(-1, *mask[name].shape[-2:])
        keys = jax.random.split(jax.random.fold_in(key, index), matrices.shape[0])
        moved = jax.vmap(lambda k, m: jax.random.permutation(k, m.reshape(-1)))(keys, matrices)
        result[name] = moved.reshape(mask[name].shape)
    return result


def _matrix_masks(scores: Array, keep: ArrayLike, variant: Variant) -> Array:
    """Return one mask per matrix; axes before the last two are a stack of matrices."""
    one = functools.partial(supermask.from_scores, keep=keep, magnitude=variant.magnitude)
    for _ in range(scores.ndim - 2):
        one = jax.vmap(one)
    return one(scores)


def _gradient(
    loss: Loss, params: dict[str, Array], batch: PyTree, accumulate: int
) -> tuple[Array, dict[str, Array]]:
    """Return the loss and its gradient for the parameters, averaged over parts of the batch."""
    if accumulate == 1:
        return jax.value_and_grad(loss)(params, batch)

    def split(leaf: Array) -> Array:
        if leaf.shape[0] % accumulate:
            allowed = f"a divisor of the batch's {leaf.shape[0]} rows"
            raise checks.fail("accumulate", allowed, accumulate)
        return leaf.reshape(accumulate, -1, *leaf.shape[1:])

    def add(total: PyTree, part: PyTree) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, total, jax.value_and_grad(loss)(params, part)), None

    zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
    total, _ = jax.lax.scan(add, zero, jax.tree.map(split, batch))
    return jax.tree.map(lambda leaf: leaf / accumulate, total)
