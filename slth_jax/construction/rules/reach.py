"""Units dealt by the size of their weights: the same width reaches larger targets."""

import jax
import jax.numpy as jnp

from slth_jax.construction.rules.deal import Rule
from slth_jax.types import Array, ArrayLike


def by_size(right: Array, first: ArrayLike, last: ArrayLike, most: int) -> tuple[Array, Array]:
    """Let the columns j take turns in choosing the unused unit k with the largest ``|right_kj|``.

    No unit is left over.
    """
    return take_turns(jnp.abs(right).T[None], first, last, most)


def take_turns(weight: Array, first: ArrayLike, last: ArrayLike, most: int) -> tuple[Array, Array]:
    """Deal units to columns, which choose in turn the unused one that weighs most for them.

    Args:
      weight: `[kinds, r, n]`; in round s the columns look at kind ``s % kinds``.
      first, last, most: as in `Choose`.
    """
    kinds, r, n = weight.shape
    slots = -(-most // r)
    unit = jnp.arange(n, dtype=jnp.int32)

    def take(turn, state):
        free, chosen = state
        own = jnp.where(free, weight[turn // r % kinds, turn % r], -jnp.inf)
        # The first of the largest; argmax takes four times as long on a CPU.
        largest = jnp.min(jnp.where(own == jnp.max(own), unit, n))
        return free & (unit != largest), chosen.at[turn].set(largest)

    free = (unit >= first) & (unit < last)
    nobody = jnp.full(slots * r, -1, jnp.int32)
    _, chosen = jax.lax.fori_loop(0, jnp.asarray(last) - first, take, (free, nobody))
    chosen = chosen.reshape(slots, r).T
    return jnp.maximum(chosen, 0), chosen >= 0


RULE = Rule("reach", "by the size of the weights, none left over", by_size, either_side=True)
