"""Draw random sources for whole transformers."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from slth_jax import initializers
from slth_jax.transformer import Block, Linear
from slth_jax.types import ArrayLike, AttentionParams, Key, PaddedAttention, Projections


def random_source(
    key: Key,
    target: Sequence[Block],
    *,
    n_mha: ArrayLike,
    n_fc: Sequence[ArrayLike],
    padded: tuple[int, Sequence[int]],
) -> tuple[Block, ...]:
    """Draw a source: attention weights as in the theory, and two layers for each ReLU layer.

    Args:
      key: a typed PRNG key.
      target: the target's blocks, which determine the source's shapes and biases.
      n_mha: the attention width n_k = n_v of every block; may be traced.
      n_fc: for each layer of a block, the number of hidden units between the two source layers that
        replace it; may be traced.
      padded: the static sizes to which `n_mha` and each entry of `n_fc` are padded.
    """
    h, m, _ = target[0].attention.w_q.shape
    attentions = initializers.theory_blocks(
        key, num_blocks=len(target), num_heads=h, d=m, n_k=n_mha, n_v=n_mha, padded=padded[0]
    )
    return tuple(
        Block(
            attention,
            random_layers(
                jax.random.fold_in(key, 2**31 + index), block.layers, widths=n_fc, padded=padded[1]
            ),
        )
        for index, (attention, block) in enumerate(zip(attentions, target, strict=True))
    )


def random_layers(
    key: Key, target: Sequence[Linear], *, widths: Sequence[ArrayLike], padded: Sequence[int]
) -> tuple[Linear, ...]:
    """Draw two layers, with entries ``U[-1, 1]`` and the target's biases, per layer of `target`."""
    if not target:  # no block has ReLU layers
        return ()
    shape = (target[0].w.shape[1], *(layer.w.shape[0] for layer in target))
    drawn = initializers.theory_layers(key, shape, padded)
    layers: list[Linear] = []
    for layer, width, first, second in zip(target, widths, drawn[::2], drawn[1::2], strict=True):
        real = jnp.arange(first.w.shape[0]) < width
        layers += [
            Linear(jnp.where(real[:, None], first.w, 0)),
            Linear(jnp.where(real[None], second.w, 0), layer.b),
        ]
    return tuple(layers)


def narrow(params: Projections, width: int) -> AttentionParams:
    """Keep only the first `width` hidden units of padded projections, or of their masks."""
    assert isinstance(params, PaddedAttention)
    return params.narrow(width, width)


def narrow_layers(layers: Sequence[Linear], widths: Sequence[int]) -> tuple[Linear, ...]:
    """Keep only the first hidden units of padded pairs of layers, or of the layers' masks."""
    narrowed: list[Linear] = []
    for first, second, width in zip(layers[::2], layers[1::2], widths, strict=True):
        narrowed += [Linear(first.w[:width]), Linear(second.w[:, :width], second.b)]
    return tuple(narrowed)
