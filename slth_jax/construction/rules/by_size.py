"""Assign hidden units by the magnitude of their weights, the largest first.

Large weights widen the range of the subset sums, so a source of the same width approximates larger
targets.
"""

import jax.numpy as jnp

from slth_jax.construction.rules.rule import Factors, Rule, Slots, Span, take_turns


def by_size(factors: Factors, span: Span) -> Slots:
    """Let each column j in turn choose the unused unit k with the largest ``|right_kj|``.

    Every unit is assigned.
    """
    n, r = factors.right.shape
    size = jnp.abs(factors.right).T  # [r, n]
    return take_turns(lambda turn, _: size[turn % r], r, span, n)


def by_signed_size(factors: Factors, span: Span) -> Slots:
    """Let columns choose units with the largest and with the lowest weight in alternate rounds.

    In one round every column j in turn chooses the unused unit k with the largest ``right_kj``; in
    the next round it chooses the unused unit with the largest ``-right_kj``. If a ReLU stands
    between the factors, an entry is two subset sums: one over the units with positive weight and
    one over the units with negative weight (Lemma 2). This rule gives the two subset sums of an
    entry the same number of samples.
    """
    n, r = factors.right.shape
    weight = jnp.stack([factors.right.T, -factors.right.T])  # [2, r, n]
    return take_turns(lambda turn, _: weight[turn // r % 2, turn % r], r, span, n)


RULE = Rule("reach", "by the size of the weights, every unit used", by_size, either_side=True)
