"""One optimiser step of edge-popup on named arrays (Ramanujan et al. 2020).

Every connection has a score. The forward pass keeps the connections whose scores are largest in
absolute value, and gradients pass straight through the mask to the scores. Any model whose
parameters are a dictionary of named arrays can be trained. Each function of this module computes
one run; use `jax.vmap` for several seeds and settings.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from slth_jax import checks
from slth_jax.edge_popup.scores import Control, Keep, Named, State, Trainable, ticket
from slth_jax.edge_popup.variants import Variant
from slth_jax.types import Key, PyTree

# ``loss(params, batch) -> loss``, or ``loss(params, state, batch, key) -> (loss, state)`` for a
# model with mutable state.
Loss = Callable[..., Any]


def start(
    weights: Named,
    trainable: Trainable,
    optimizer: optax.GradientTransformation,
    *,
    model: PyTree = None,
) -> State:
    """Return the state of a run before its first step."""
    return State(jnp.int32(0), dict(weights), trainable, optimizer.init(trainable), model)


def step(
    key: Key,
    state: State,
    batch: PyTree,
    keep: Keep,
    *,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    variant: Variant,
    accumulate: int = 1,
    control: Control = None,
) -> tuple[State, dict[str, Float[Array, ""]]]:
    """Make one optimiser step; leave the source weights unchanged.

    Args:
      key: a typed PRNG key for sampled masks and for the loss; it must differ between steps.
      state: the state that `start` or the previous step returned.
      batch: the batch that is passed to `loss`. The first axis of the batch's arrays is split into
        `accumulate` parts, whose gradients are averaged.
      keep: the fraction kept, or a dict from array name to fraction; may be traced.
      loss: ``loss(params, batch) -> scalar``, a mean over the batch; for a model with mutable state
        ``loss(params, state, batch, key) -> (scalar, state)``.
      optimizer: any optimiser of Optax; it updates a `Trainable`. For line searches the optimiser
        also receives `value` (the loss), `grad` (its gradient) and `value_fn` (the loss as a
        function of a `Trainable`).
      variant: the form of edge-popup.
      accumulate: the number of parts of a batch that are computed one after another.
      control: whether this run is a control; None for a program without controls.

    Returns:
      The next state, and a dict with 'loss' (before the update) and 'grad_norm'.

    Raises:
      ValueError: the variant re-draws weights, which a single step cannot do. Use `fit` or `train`,
        or set ``redraw_every=0`` and call `redraw` between steps.
    """
    if variant.redraw_every:
        allowed = (
            "with redraw_every=0 in a step alone (`fit` re-draws; or call `redraw` in between)"
        )
        raise checks.fail("variant", allowed, f"redraw_every={variant.redraw_every}")
    keep_at = variant.keep_at
    if keep_at is not None:
        keep = jax.tree.map(lambda fraction: keep_at(fraction, state.step), keep)

    def moving(trainable: Trainable) -> dict[str, Array]:
        params = ticket(key, state.weights, trainable, keep, variant, control=control)
        return {name: params[name] for name in (*trainable.scores, *trainable.learned)}

    params, pull = jax.vjp(moving, state.trainable)
    fixed = {name: value for name, value in state.weights.items() if name not in params}
    uniform = _uniform(loss, fixed, state.model)
    value, gradient, model = _gradient(uniform, params, state.model, batch, key, accumulate)
    (gradient,) = pull(gradient)
    updates, opt_state = update(
        optimizer,
        gradient,
        state,
        value,
        lambda trainable: uniform(moving(trainable), state.model, batch, key)[0],
    )
    trainable = optax.apply_updates(state.trainable, updates)
    metrics = {"loss": value, "grad_norm": optax.tree.norm(gradient)}
    return State(state.step + 1, state.weights, trainable, opt_state, model), metrics


def update(
    optimizer: optax.GradientTransformation,
    gradient: Trainable,
    state: State,
    value: Float[Array, ""],
    value_fn: Callable[[Trainable], Array],
) -> tuple[Trainable, PyTree]:
    """Call the optimiser; return the updates and the optimiser's next state."""
    more = optax.with_extra_args_support(optimizer)
    before = state.opt_state, state.trainable
    return more.update(gradient, *before, value=value, grad=gradient, value_fn=value_fn)


def _uniform(loss: Loss, fixed: dict[str, Array], model: PyTree) -> Loss:
    """Return the loss as a function ``(params, state, batch, key) -> (loss, state)``.

    `params` are the trained arrays; the other arrays, `fixed`, are added to them.
    """

    def call(params, state, batch, key):
        everything = {**fixed, **params}
        if model is None:
            return loss(everything, batch), None
        return loss(everything, state, batch, key)

    return call


def _gradient(
    loss: Loss, params: dict[str, Array], model: PyTree, batch: PyTree, key: Key, accumulate: int
) -> tuple[Float[Array, ""], dict[str, Array], PyTree]:
    """Return loss and gradient (means over the parts of the batch), and the model's next state."""
    call = jax.value_and_grad(loss, has_aux=True)
    if accumulate == 1:
        (value, model), gradient = call(params, model, batch, key)
        return value, gradient, model

    def split(leaf: Array) -> Array:
        if leaf.shape[0] % accumulate:
            allowed = f"a divisor of the batch's {leaf.shape[0]} rows"
            raise checks.fail("accumulate", allowed, accumulate)
        return leaf.reshape(accumulate, -1, *leaf.shape[1:])

    def add(carry: PyTree, part: PyTree) -> tuple[PyTree, None]:
        total, model = carry
        index, rows = part
        (value, model), gradient = call(params, model, rows, jax.random.fold_in(key, index))
        return (jax.tree.map(jnp.add, total, (value, gradient)), model), None

    zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
    parts = (jnp.arange(accumulate), jax.tree.map(split, batch))
    (total, model), _ = jax.lax.scan(add, (zero, model), parts)
    return *jax.tree.map(lambda leaf: leaf / accumulate, total), model
