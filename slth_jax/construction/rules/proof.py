"""The rule of the proof of Lemmas 4 and 7: hidden units in order, as many for each column."""

import jax.numpy as jnp

from slth_jax.construction.rules.deal import Rule
from slth_jax.types import Array, ArrayLike


def in_order(right: Array, first: ArrayLike, last: ArrayLike, most: int) -> tuple[Array, Array]:
    """Give each column the next ``(last - first) // r`` units; the rest is left over."""
    r = right.shape[1]
    size = jnp.maximum((jnp.asarray(last) - first) // r, 1)
    slots = jnp.arange(most // r, dtype=jnp.int32)[None, :]
    filled = jnp.broadcast_to(slots < size, (r, most // r))
    units = first + jnp.arange(r, dtype=jnp.int32)[:, None] * size + slots
    return jnp.where(filled, units, 0).astype(jnp.int32), filled


RULE = Rule("proof", "in order, as the proof of Lemma 4 does", in_order)
