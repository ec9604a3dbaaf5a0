"""Multi-head attention as pure functions on explicit parameters.

`apply` computes attention from the four projections of each head. `apply_merged` computes attention
from the two matrices per head that `merge` returns. `pattern` returns the attention weights.
`error` returns the distance between the outputs of a ticket and of its target. `from_torch` and
`from_flax` convert layers of PyTorch and Flax. Biases become weights of a constant input
(`with_biases`, `append_one`).
"""

from slth_jax.attention.adopt import append_one, from_flax, from_torch, with_biases
from slth_jax.attention.core import apply, apply_merged, causal_mask, error, merge, pattern
from slth_jax.types import AttentionParams, MergedParams, PaddedAttention

__all__ = [
    "AttentionParams",
    "MergedParams",
    "PaddedAttention",
    "append_one",
    "apply",
    "apply_merged",
    "causal_mask",
    "error",
    "from_flax",
    "from_torch",
    "merge",
    "pattern",
    "with_biases",
]
