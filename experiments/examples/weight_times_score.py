"""A form of edge-popup that ranks connections by |weight x score|."""

import jax
import jax.numpy as jnp

from slth_jax import edge_popup, supermask


def masks(key, scores, weights, keep):
    """Keep the connections with the largest |weight x score|."""
    return supermask.from_tree(jax.tree.map(jnp.multiply, scores, weights), keep)


MASKING = edge_popup.Masking(edge_popup.Variant(masks=masks))  # fit(..., masking=MASKING)
