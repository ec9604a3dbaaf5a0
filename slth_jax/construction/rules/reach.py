"""Units dealt by the size of their weights: the same width reaches larger targets."""

import jax
import jax.numpy as jnp

from slth_jax.construction.rules.deal import Rule
from slth_jax.types import Array, ArrayLike


def by_size(right: Array, first: ArrayLike, last: ArrayLike, most: int) -> tuple[Array, Array]:
    """Let the columns j take turns in choosing the unused unit k with the largest ``|right_kj|``.

    No unit is left over.
    """
    n, r = right.shape
    weight = jnp.abs(right)

    def take(turn, state):
        units, filled, free = state
        s, j = turn // r, turn % r
        chosen = jnp.argmax(jnp.where(free, weight[:, j], -1)).astype(jnp.int32)
        return (
            units.at[j, s].set(chosen),
            filled.at[j, s].set(True),
            free.at[chosen].set(False),
        )

    slots = -(-most // r)
    unit = jnp.arange(n)
    empty = jnp.zeros((r, slots), jnp.int32), jnp.zeros((r, slots), bool)
    free = (unit >= first) & (unit < last)
    units, filled, _ = jax.lax.fori_loop(0, jnp.asarray(last) - first, take, (*empty, free))
    return units, filled


RULE = Rule("reach", "by the size of the weights, none left over", by_size, either_side=True)
