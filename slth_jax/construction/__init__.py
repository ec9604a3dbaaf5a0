"""Find the masks under which a random source approximates a given target, and check them.

`prune` and `relu` have the public functions: they validate their arguments and turn a network into
products of two random matrices. `engine` solves these: a rule (`rules`) assigns hidden units to
columns, `search` makes every entry of a target a subset sum, and kept samples become masks. The
functions `prune_*` return masks, the functions `solve_*` a `Pruned` with masks and a report.
`find_width` finds the smallest width for an error. Bounds on the error of a ticket are in
`slth_jax.guarantee`.
"""

from slth_jax.construction.encode import Encoded, encode_matrix
from slth_jax.construction.engine import Pruned, Report
from slth_jax.construction.prune import (
    AttentionReport,
    apply_masks,
    prune_attention,
    prune_product,
    prune_transformer,
    solve_attention,
    solve_product,
    solve_transformer,
)
from slth_jax.construction.relu import (
    prune_layers,
    prune_relu_layer,
    solve_layers,
    solve_relu_layer,
)
from slth_jax.construction.rules import RULES, Rule, Search, band, shift
from slth_jax.construction.width import FoundWidth, find_width
from slth_jax.guarantee import guaranteed_error, guaranteed_error_on, is_vacuous

CONSTRUCTIONS = tuple(RULES)

__all__ = [
    "CONSTRUCTIONS",
    "RULES",
    "AttentionReport",
    "Encoded",
    "FoundWidth",
    "Pruned",
    "Report",
    "Rule",
    "Search",
    "apply_masks",
    "band",
    "encode_matrix",
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
    "solve_attention",
    "solve_layers",
    "solve_product",
    "solve_relu_layer",
    "solve_transformer",
]
