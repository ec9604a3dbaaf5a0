"""The theorems made executable: a target and a random source to the masks of a ticket.

`prune` holds the public functions: `fits` asks whether source and target go together, `networks`
turns both into products of two matrices, and `matrices`, the engine, meets each: a rule (`rules`)
deals hidden units to columns, `search` makes every entry a subset sum, and kept samples become
masks. `guarantee` says what can be promised of a ticket, `find_width` which width it takes.
"""

from slth_jax.construction.guarantee import guaranteed_error, is_vacuous
from slth_jax.construction.matrices import Report
from slth_jax.construction.networks import AttentionReport
from slth_jax.construction.on_inputs import guaranteed_error_on
from slth_jax.construction.prune import (
    apply_masks,
    prune_attention,
    prune_layers,
    prune_product,
    prune_relu_layer,
    prune_transformer,
)
from slth_jax.construction.rules import RULES, Rule, shift
from slth_jax.construction.width import FoundWidth, find_width

CONSTRUCTIONS = tuple(RULES)

__all__ = [
    "CONSTRUCTIONS",
    "RULES",
    "AttentionReport",
    "FoundWidth",
    "Report",
    "Rule",
    "apply_masks",
    "find_width",
    "guaranteed_error",
    "guaranteed_error_on",
    "is_vacuous",
    "prune_attention",
    "prune_layers",
    "prune_product",
    "prune_relu_layer",
    "prune_transformer",
    "shift",
]
