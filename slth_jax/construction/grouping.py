"""Dealing hidden units to the columns of a factor (the groups of Lemmas 4 and 7)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from slth_jax.types import Array, ArrayLike

CONSTRUCTIONS = ("proof", "reach")
"""Ways to deal: in order, as the proof does, or by the size of the weights."""


class Groups(NamedTuple):
    """Which hidden unit serves which column; both directions of one assignment."""

    units: Array  # [r, slots] the unit in each slot of each group
    filled: Array  # [r, slots] whether the slot holds a unit
    group: Array  # [n] the group of each unit
    slot: Array  # [n] its slot there
    member: Array  # [n, r] whether a unit belongs to a group: the mask of the grouped factor


def deal(right: Array, *, width: ArrayLike, construction: str) -> Groups:
    """Deal the first `width` rows of `right [n, r]` to its r columns.

    'proof': in order, ``width // r`` each, the rest left over. 'reach': the columns take turns in
    choosing the unused unit with the largest ``|right_kj|``; none is left over.
    """
    return _in_order(right, width) if construction == "proof" else _by_reach(right, width)


def _in_order(right: Array, width: ArrayLike) -> Groups:
    n, r = right.shape
    size = jnp.maximum(jnp.asarray(width) // r, 1)
    slots = jnp.arange(n // r)[None, :]
    groups = jnp.arange(r)[:, None]
    filled = jnp.broadcast_to(slots < size, (r, n // r))
    unit = jnp.arange(n)
    used = unit < size * r
    group = jnp.minimum(unit // size, r - 1)
    slot = jnp.minimum(unit % size, n // r - 1)
    return Groups(
        units=jnp.where(filled, groups * size + slots, 0),
        filled=filled,
        group=group,
        slot=slot,
        member=(group[:, None] == groups.T) & used[:, None],
    )


def _by_reach(right: Array, width: ArrayLike) -> Groups:
    n, r = right.shape
    slots = -(-n // r)
    weight = jnp.abs(right)

    def take(turn, state):
        groups, free = state
        s, j = turn // r, turn % r
        chosen = jnp.argmax(jnp.where(free, weight[:, j], -1)).astype(jnp.int32)
        return Groups(
            units=groups.units.at[j, s].set(chosen),
            filled=groups.filled.at[j, s].set(True),
            group=groups.group.at[chosen].set(j),
            slot=groups.slot.at[chosen].set(s),
            member=groups.member.at[chosen, j].set(True),
        ), free.at[chosen].set(False)

    empty = Groups(
        units=jnp.zeros((r, slots), jnp.int32),
        filled=jnp.zeros((r, slots), bool),
        group=jnp.zeros(n, jnp.int32),
        slot=jnp.zeros(n, jnp.int32),
        member=jnp.zeros((n, r), bool),
    )
    return jax.lax.fori_loop(0, width, take, (empty, jnp.arange(n) < width))[0]


def split_by_sign(groups: Groups, right: Array) -> tuple[Groups, Groups]:
    """Return the units with a positive and with a negative weight to their own column.

    In each half its units come first in every group, so that the empty slots are at the end.
    """
    columns = jnp.arange(right.shape[1])[:, None]
    weight = jnp.where(groups.filled, right[groups.units, columns], 0)
    return _half(groups, weight > 0, right > 0), _half(groups, weight < 0, right < 0)


def _half(groups: Groups, own: Array, member: Array) -> Groups:
    order = jnp.argsort(~own, axis=-1)
    return Groups(
        units=jnp.take_along_axis(groups.units, order, axis=-1),
        filled=jnp.take_along_axis(own, order, axis=-1),
        group=groups.group,
        slot=jnp.argsort(order, axis=-1)[groups.group, groups.slot],
        member=groups.member & member,
    )
