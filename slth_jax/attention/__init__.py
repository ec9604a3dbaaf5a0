"""Multi-head attention as pure functions on explicit parameters.

`apply` computes it from the four projections of each head, or from the two matrices that it
depends on (`merge`, `apply_merged`); `pattern` is where its heads look; weights of PyTorch and Flax
come in by `from_torch` and `from_flax`, their biases as weights of a constant input (`with_biases`,
`append_one`).
"""

from slth_jax.attention.adopt import append_one, from_flax, from_torch, with_biases
from slth_jax.attention.core import apply, apply_merged, causal_mask, merge, pattern
from slth_jax.types import AttentionParams, MergedParams, PaddedAttention

__all__ = [
    "AttentionParams",
    "MergedParams",
    "PaddedAttention",
    "append_one",
    "apply",
    "apply_merged",
    "causal_mask",
    "from_flax",
    "from_torch",
    "merge",
    "pattern",
    "with_biases",
]
