"""Train a small network that adds modulo p.

The run trains the network itself, so no file is needed.
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax

from experiments.trained_target import pretrained
from experiments.trained_target.pretrained import Network
from slth_jax.transformer import Block, Linear
from slth_jax.types import Array, AttentionParams, Key


def train(
    key: Key, *, modulus: int = 23, d: int = 48, heads: int = 4, hidden: int = 96, steps: int = 600
) -> Network:
    """Train one block without normalisation with AdamW; a batch contains all ``p^2`` questions.

    The architecture is a smaller version of the network of Nanda et al. (2023): causal attention
    and a ReLU network with biases.
    """
    return _train(key, modulus, d, heads, hidden, steps)


@partial(jax.jit, static_argnums=(1, 2, 3, 4, 5))
def _train(key: Key, modulus: int, d: int, heads: int, hidden: int, steps: int) -> Network:
    network = _initial(key, modulus, d, heads, hidden)
    task = pretrained.task_of(network)
    optimizer = optax.adamw(optax.cosine_decay_schedule(3e-3, steps), weight_decay=0.3)

    def loss(network: Network) -> Array:
        rows = pretrained.read_out(network, task, network.blocks, batch=modulus**2)
        return pretrained.score(network, task, rows)["loss"]

    def step(state, _):
        network, opt_state = state
        updates, opt_state = optimizer.update(jax.grad(loss)(network), opt_state, network)
        return (optax.apply_updates(network, updates), opt_state), None

    (network, _), _ = jax.lax.scan(step, (network, optimizer.init(network)), length=steps)
    return network


def _initial(key: Key, modulus: int, d: int, heads: int, hidden: int) -> Network:
    keys = iter(jax.random.split(key, 9))

    def normal(*shape: int) -> Array:
        return jax.random.normal(next(keys), shape, jnp.float32) / jnp.sqrt(jnp.float32(d))

    width = d // heads
    attention = AttentionParams(
        normal(heads, d, width), normal(heads, d, width), normal(heads, d, width),
        normal(heads, width, d),
    )  # fmt: skip
    layers = (
        Linear(normal(hidden, d), jnp.zeros(hidden, jnp.float32)),
        Linear(normal(d, hidden), jnp.zeros(d, jnp.float32)),
    )
    return Network(
        w_e=normal(modulus + 1, d),
        w_pos=normal(3, d),
        blocks=(Block(attention, layers),),
        w_u=normal(d, modulus + 1),
    )
