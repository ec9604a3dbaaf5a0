"""Apply the paper's transformer: blocks of attention and a ReLU network, no normalisation.

A block is ``Blk(x) = F(Attn(x) + x) + Attn(x) + x`` (paper, Theorems 11 and 14). The letters in
shapes are listed in `attention.core`.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from slth_jax import attention, checks
from slth_jax.attention.core import validated
from slth_jax.types import Array, ArrayLike, Block, Linear

__all__ = ["Block", "Linear", "apply", "apply_block", "apply_layers", "validate_biases"]


def apply_layers(layers: Sequence[Linear], x: ArrayLike, *, precision: str = "highest") -> Array:
    """Apply a ReLU network to rows `[t, i]`; no ReLU follows the last layer."""
    x = checks.array("x", x, ndim=2)
    with jax.default_matmul_precision(precision):
        for index, layer in enumerate(layers):
            x = jnp.einsum("ti,oi->to", jax.nn.relu(x) if index else x, layer.w)
            if layer.b is not None:
                x = x + layer.b[None, :]
    return x


def apply_block(
    block: Block,
    x: ArrayLike,
    attn_mask: ArrayLike | None = None,
    *,
    queries: ArrayLike | None = None,
    precision: str = "highest",
) -> Array:
    """Compute ``F(Attn(x) + x) + Attn(x) + x`` of tokens `[t, m]` (paper, Theorem 11).

    `attn_mask` and `queries` (the indices of the tokens to compute) are as in `attention.apply`.
    """
    x = checks.array("x", x, shape=(None, block.attention.w_q.shape[1]))
    attended = attention.apply(
        block.attention,
        x,
        attn_mask,
        queries=queries,
        precision=precision,
    )
    hidden = attended + (x if queries is None else x[jnp.asarray(queries)])
    if not block.layers:
        return hidden
    return apply_layers(block.layers, hidden, precision=precision) + hidden


def apply(
    blocks: Sequence[Block],
    x: ArrayLike,
    attn_mask: ArrayLike | None = None,
    *,
    queries: ArrayLike | None = None,
    precision: str = "highest",
) -> Array:
    """Apply the blocks one after another to tokens `[t, m]` (paper, Theorem 14).

    If `queries` (indices `[q]` of tokens) is given, the last block computes the output of these
    tokens only, and the result is `[q, m]`.

    Raises:
      ValueError: widths do not fit together, or a row of `attn_mask` has no True.
    """
    for index, block in enumerate(checks.sequence("blocks", blocks, Block)):
        _check(f"blocks[{index}]", block)
        x = apply_block(
            block,
            x,
            attn_mask,
            queries=queries if index == len(blocks) - 1 else None,
            precision=precision,
        )
    return checks.array("x", x, ndim=2)


def _check(name: str, block: Block) -> None:
    """Refuse a block whose attention or ReLU network changes the width of the tokens."""
    params = validated(f"{name}.attention", block.attention)
    m = params.w_q.shape[1]
    for field in ("w_k", "w_v"):  # a transformer has no memory
        checks.array(f"{name}.attention.{field}", getattr(params, field), shape=(None, m, None))
    checks.array(f"{name}.attention.w_o", params.w_o, shape=(None, None, m))
    width = m
    for index, layer in enumerate(block.layers):
        last = index == len(block.layers) - 1
        shape = (m if last else None, width)
        width = checks.array(f"{name}.layers[{index}].w", layer.w, shape=shape).shape[0]
        if layer.b is not None:
            checks.array(f"{name}.layers[{index}].b", layer.b, shape=(width,))


def validate_biases(first: Linear, second: Linear, target: Linear) -> None:
    """Refuse two source layers whose biases do not match the `target` layer they approximate.

    Raises:
      ValueError: `first` has a bias, or the bias of `second` differs from the target's bias.
    """
    differ = (second.b is None) != (target.b is None)
    if second.b is not None and target.b is not None:
        second_bias, target_bias = checks.concrete(second.b), checks.concrete(target.b)
        if second_bias is not None and target_bias is not None:
            differ = not np.array_equal(second_bias, target_bias)
    if differ or first.b is not None:
        raise checks.fail("source", "a net with the target's biases on its odd layers", "others")
