"""Units dealt for a map across a ReLU: as many of either sign to each column."""

import jax.numpy as jnp

from slth_jax.construction.rules.reach import take_turns
from slth_jax.types import Array, ArrayLike


def by_signed_size(
    right: Array, first: ArrayLike, last: ArrayLike, most: int
) -> tuple[Array, Array]:
    """Let the columns j take turns in choosing the largest ``right_kj``, then ``-right_kj``.

    Of two subset sums, one over the units of each sign (Lemma 2), neither is then short of samples.
    """
    weight = jnp.stack([right.T, -right.T])
    columns = right.shape[1]

    def weigh(turn, _):
        return weight[turn // columns % 2, turn % columns]

    return take_turns(weigh, right, first, last, most)
