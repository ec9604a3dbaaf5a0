"""Find the masks under which a random source approximates a given target, and check them.

The modules `prune` and `relu` contain the public functions, which validate their arguments and
write a network as products of two random matrices. `engine` finds the masks of each product. First
a rule (from `rules`) assigns the hidden units to the columns of one matrix. Then `search`
approximates every entry of the target by a subset sum over the units of its column, and the mask
keeps the units in that subset. The functions `prune_*` return masks. The functions `solve_*` return
a `Pruned`, which contains masks and a report. `find_width` finds the smallest source width for a
given error. Bounds on a ticket's error are in `slth_jax.guarantee`.
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
from slth_jax.construction.rules import RULES, Rule, Search, band, shift, sparse
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
    "sparse",
]
