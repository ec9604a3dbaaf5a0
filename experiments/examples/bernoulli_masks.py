"""Train random masks: every connection is kept with a probability, which is trained.

The masks are sampled at every step, and gradients pass through the probabilities
(Zhou et al. 2019).
"""

import jax

from slth_jax import edge_popup, supermask


def masks(key, scores, weights, keep):
    """Keep a connection with the probability sigmoid(score); the argument `keep` is unused."""
    return jax.random.bernoulli(key, jax.nn.sigmoid(scores))


def through(scores, mask):
    """Return the mask; its derivative is replaced by the derivative of the probability."""
    return supermask.straight_through_raw(jax.nn.sigmoid(scores), mask)


MASKING = edge_popup.Masking(edge_popup.Variant(masks=masks, through=through))
