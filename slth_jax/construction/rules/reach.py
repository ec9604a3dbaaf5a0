"""Units dealt by the size of their weights: the same width reaches larger targets."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from slth_jax.construction.rules.deal import Rule
from slth_jax.types import Array, ArrayLike


def by_size(right: Array, first: ArrayLike, last: ArrayLike, most: int) -> tuple[Array, Array]:
    """Let the columns j take turns in choosing the unused unit k with the largest ``|right_kj|``.

    No unit is left over.
    """
    weight = jnp.abs(right).T
    return take_turns(lambda turn, _: weight[turn % weight.shape[0]], right, first, last, most)


def take_turns(
    weigh: Callable[[Array, Any], Array],
    right: Array,
    first: ArrayLike,
    last: ArrayLike,
    most: int,
    *,
    state: Any = None,
    taken: Callable[[Array, Array, Any], Any] = lambda turn, unit, state: state,
) -> tuple[Array, Array]:
    """Deal units to columns, which choose in turn the unused one that weighs most for them.

    Args:
      weigh: ``weigh(turn, state)``, `[n]`: what the units are worth to column ``turn % r``.
      right, first, last, most: as in `Choose`.
      state: what `weigh` looks at besides.
      taken: ``taken(turn, unit, state)``, the state once that unit is given away.
    """
    n, r = right.shape
    slots = -(-most // r)
    unit = jnp.arange(n, dtype=jnp.int32)

    def take(turn, carry):
        free, chosen, state = carry
        own = jnp.where(free, weigh(turn, state), -jnp.inf)
        # The first of the largest; argmax takes four times as long on a CPU.
        largest = jnp.min(jnp.where(own == jnp.max(own), unit, n))
        chosen = chosen.at[turn].set(largest)
        return free & (unit != largest), chosen, taken(turn, largest, state)

    free = (unit >= first) & (unit < last)
    nobody = jnp.full(slots * r, -1, jnp.int32)
    _, chosen, _ = jax.lax.fori_loop(0, jnp.asarray(last) - first, take, (free, nobody, state))
    chosen = chosen.reshape(slots, r).T
    return jnp.maximum(chosen, 0), chosen >= 0


RULE = Rule("reach", "by the size of the weights, none left over", by_size, either_side=True)
