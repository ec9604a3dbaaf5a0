"""Train the attention layer that is the paper's target, and draw random transformers."""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.paper import data
from slth_jax import attention, initializers
from slth_jax.transformer import Block, Linear
from slth_jax.types import Array, Key, Projections


@dataclasses.dataclass(frozen=True)
class Training:
    """Settings with which the attention target is trained (paper, section 3).

    The width d_v = 8 is an assumption. The initial weights have the theory's distribution, as in
    the paper's appendix.
    """

    d_k: int = 8
    d_v: int = 8
    sequences: int = 10_000  # in each of training, validation and test data
    min_length: int = 4
    max_length: int = 256
    batch: int = 1024
    epochs: int = 25
    learning_rate: float = 0.1
    weight_decay: float = 0.01


class AngularTarget(NamedTuple):
    """A trained attention layer, its regression token `[2]`, and its mean squared test error."""

    params: Projections  # float32
    token: Array
    test_loss: Array


def train_angular(key: Key, training: Training) -> AngularTarget:
    """Train a head (``d_in = 2, d_out = 1``) to output the velocity at the regression token.

    AdamW minimises the squared error; the weights of the epoch with the least validation loss are
    returned.
    """
    return _train(key, training)


@partial(jax.jit, static_argnums=1)
def _train(key: Key, training: Training) -> AngularTarget:
    for_params, for_order, *for_data = jax.random.split(key, 5)
    train, validation, test = (
        data.angular_velocity(
            k, training.sequences, training.max_length, min_length=training.min_length
        )
        for k in for_data
    )
    params = initializers.theory_attention(
        for_params, num_heads=1, d_in=2, d_out=1, n_k=training.d_k, n_v=training.d_v
    )
    optimizer = optax.adamw(training.learning_rate, weight_decay=training.weight_decay)
    start = (params, jnp.zeros(2, jnp.float32))
    steps = training.sequences // training.batch

    def step(state, rows):
        net, opt_state = state
        batch = data.Sequences(*(part[rows] for part in train))
        gradient = jax.grad(_loss)(net, batch)
        updates, opt_state = optimizer.update(gradient, opt_state, net)
        return (optax.apply_updates(net, updates), opt_state), None

    def epoch(carry, epoch_key):
        state, best, best_loss = carry
        order = jax.random.permutation(epoch_key, training.sequences)
        rows = order[: steps * training.batch].reshape(steps, training.batch)
        state, _ = jax.lax.scan(step, state, rows)
        loss = _loss(state[0], validation)
        better = loss < best_loss
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), state[0], best)
        return (state, best, jnp.minimum(loss, best_loss)), None

    carry = ((start, optimizer.init(start)), start, jnp.asarray(jnp.inf, jnp.float32))
    (_, (params, token), _), _ = jax.lax.scan(
        epoch, carry, jax.random.split(for_order, training.epochs)
    )
    return AngularTarget(params, token, _loss((params, token), test))


def _loss(net: tuple[Projections, Array], sequences: data.Sequences) -> Array:
    """Compute, in float32, the mean squared error of the output at the regression token."""
    params, token = net
    x = data.with_token(token, sequences.x.astype(jnp.float32))
    merged = attention.merge(params)
    # Only the regression token's output is computed, so the time is proportional to the length.
    logits = jnp.einsum("m,hmn,stn->hst", token, merged.w_qk, x)
    inside = jnp.arange(x.shape[1])[None] <= sequences.length[:, None]
    weights = jax.nn.softmax(jnp.where(inside[None], logits, -jnp.inf), axis=-1)
    answer = jnp.einsum("hst,stm,hmo->s", weights, x, merged.w_vo)
    return jnp.mean((answer - sequences.w.astype(jnp.float32)) ** 2)


def random_transformer(
    key: Key, *, num_blocks: int, d: int, d_k: int, heads: int = 1
) -> tuple[Block, ...]:
    """Draw an untrained transformer as in figure 6.

    The attention weights have the theory's distribution, and every block has one ReLU layer with
    entries U[-1, 1].
    """
    blocks = []
    for block_key in jax.random.split(key, num_blocks):
        for_attention, for_layer = jax.random.split(block_key)
        blocks.append(
            Block(
                initializers.theory_attention(
                    for_attention, num_heads=heads, d_in=d, d_out=d, n_k=d_k, n_v=d_k
                ),
                (Linear(initializers.uniform_units(for_layer, d, (d,))),),
            )
        )
    return tuple(blocks)
