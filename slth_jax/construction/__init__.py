"""The theorems made executable: a target and a random source to the masks of a ticket.

`pairing` asks whether the two fit; `pruning` turns networks into products of two matrices;
`grouping` deals hidden units to columns; `entries` makes every entry of a target a subset sum and
kept samples masks again; `prune` holds the public functions and `guarantee` what can be promised.
"""

from slth_jax.construction.entries import Report
from slth_jax.construction.grouping import CONSTRUCTIONS
from slth_jax.construction.guarantee import guaranteed_error, is_vacuous
from slth_jax.construction.prune import (
    apply_masks,
    prune_attention,
    prune_layers,
    prune_product,
    prune_relu_layer,
    prune_transformer,
)
from slth_jax.construction.pruning import AttentionReport, TransformerReport

__all__ = [
    "CONSTRUCTIONS",
    "AttentionReport",
    "Report",
    "TransformerReport",
    "apply_masks",
    "guaranteed_error",
    "is_vacuous",
    "prune_attention",
    "prune_layers",
    "prune_product",
    "prune_relu_layer",
    "prune_transformer",
]
