"""Soft masks: every connection is kept with its own chance, which training moves.

The masks are sampled at every step, and gradients pass through the chance (Zhou et al. 2019).
"""

import jax

from slth_jax import edge_popup, supermask


def masks(key, scores, weights, keep):
    """Keep a connection with the chance sigmoid(score); `keep` plays no part."""
    return jax.random.bernoulli(key, jax.nn.sigmoid(scores))


def through(scores, mask):
    """Return the mask, with the derivative of the chance."""
    return supermask.straight_through_raw(jax.nn.sigmoid(scores), mask)


MASKING = edge_popup.Masking(edge_popup.Variant(masks=masks, through=through))
