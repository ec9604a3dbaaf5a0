"""Run one trial: measure the error of a ticket in a random transformer, then bound it."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.paper.sources import narrow, narrow_layers, random_source
from experiments.paper.targets import random_transformer
from slth_jax import construction, guarantee, transformer
from slth_jax import ticket as tickets
from slth_jax.sweep import Results
from slth_jax.transformer import Block, Linear
from slth_jax.types import Array, AttentionParams, Hparams, Key, PaddedAttention

D_K = 4
# This factor is a power of two, so scaling is exact and `bounded` can draw equal weights again.
TARGET_SCALE = 0.25
LENGTHS = (2, 4, 8, 16, 32, 64)


class Shape(NamedTuple):
    """The static settings of one compiled program: a rule and the sizes of the networks."""

    rule: str
    d: int
    heads: int
    depth: int


class Drawn(NamedTuple):
    """The networks (blocks are stacked on the first axis) and the input of a trial."""

    source: Block
    target: Block
    x: Array  # [t, d]; tokens at positions `length` and later are padding
    alpha: Array
    length: Array


def draw(shape: Shape, key: Key, width: Array, width_max: int) -> Drawn:
    """Draw a target, a source and an input.

    The input bound alpha is log-uniform in [1/4, 4], and the input length T is a random entry of
    `LENGTHS`. Tokens have random directions and norms up to alpha; the first token has norm alpha.
    The target's weights are multiplied by `TARGET_SCALE` (value weights by TARGET_SCALE / H), so
    that their norms are small.
    """
    # Each width has a different target, source and input. All rules share them.
    key = jax.random.fold_in(key, width)
    for_target, for_source, for_x, for_alpha, for_length = jax.random.split(key, 5)

    def block(b: Array) -> tuple[Block, Block]:
        (target,) = random_transformer(
            jax.random.fold_in(for_target, b), num_blocks=1, d=shape.d, d_k=D_K, heads=shape.heads
        )
        weights = target.attention
        assert isinstance(weights, AttentionParams)
        attention = weights._replace(
            w_q=weights.w_q * TARGET_SCALE, w_v=weights.w_v * (TARGET_SCALE / shape.heads)
        )
        layers = tuple(Linear(layer.w * TARGET_SCALE) for layer in target.layers)
        target = Block(attention, layers)
        (source,) = random_source(
            jax.random.fold_in(for_source, b),
            (target,),
            n_mha=width,
            n_fc=(width,),
            padded=(width_max, (width_max,)),
        )
        return source, target

    source, target = jax.vmap(block)(jnp.arange(shape.depth))
    wide = jax.dtypes.canonicalize_dtype(jnp.float64)
    alpha = 2 ** jax.random.uniform(for_alpha, (), jnp.float32, -2, 2).astype(wide)
    longest = max(LENGTHS)
    numbers = jax.random.normal(for_x, (longest, shape.d + 1), jnp.float32).astype(wide)
    part = jnp.abs(jnp.tanh(numbers[:, -1])).at[0].set(1)
    rows = numbers[:, :-1] / jnp.linalg.norm(numbers[:, :-1], axis=-1, keepdims=True)
    length = jax.random.choice(for_length, jnp.asarray(LENGTHS))
    return Drawn(source, target, rows * part[:, None] * alpha, alpha, length)


def make_trial(shape: Shape):
    """Return the trial function: draw the networks, prune and measure the error at every block."""

    def trial(key: Key, hparams: Hparams):
        drawn = draw(shape, key, hparams["width"], hparams["width_max"])
        prune = partial(construction.prune_transformer, construction=shape.rule)
        masks = jax.vmap(lambda s, t: prune((s,), (t,))[0])(drawn.source, drawn.target)
        wide = partial(jax.tree.map, lambda w: w.astype(drawn.x.dtype))
        ticket = wide(construction.apply_masks(drawn.source, masks))
        inside = jnp.arange(drawn.x.shape[0]) < drawn.length
        attn_mask = jnp.broadcast_to(inside[None], (inside.size, inside.size))

        def step(rows, blocks):
            rows = tuple(
                transformer.apply_block(block, x, attn_mask)
                for block, x in zip(blocks, rows, strict=True)
            )
            apart = jnp.linalg.norm(rows[0] - rows[1], axis=-1)
            return rows, jnp.max(jnp.where(inside, apart, 0))

        _, error = jax.lax.scan(step, (drawn.x, drawn.x), (ticket, wide(drawn.target)))
        return {"error": error, "alpha": drawn.alpha, "length": drawn.length}, masks

    return trial


def bounded(
    shape: Shape, results: Results, depths: Sequence[int]
) -> Iterator[list[dict[str, Any]]]:
    """Yield, for each trial and depth, a dict with the measured error and both bounds.

    `bound` holds for all inputs and `bound_on` for the trial's input. Errors are measured in
    float64, and the bounds contain the round-off of float64.
    """
    widest = max(row["width"] for row in results.rows)
    again = jax.jit(partial(draw, shape, width_max=widest))
    for index, row in enumerate(results.rows):
        width = int(row["width"])
        drawn = jax.tree.map(
            np.asarray, again(jax.random.key(row["seed"], impl=tickets.IMPL), width=width)
        )
        source, target, masks = _blocks(shape, drawn, results.arrays(index), width)
        x = drawn.x[None, : int(drawn.length)]
        alpha = float(np.linalg.norm(x, axis=-1).max())
        for_all = guarantee.guarantee(
            source, masks, target, alpha, num_tokens=x.shape[1], dtype=x.dtype
        )
        on_x = guarantee.guarantee_on(source, masks, target, x, dtype=x.dtype)
        yield [
            _row(shape, row, depth, for_all.blocks, on_x, float(drawn.alpha), x.shape[1])
            for depth in depths
        ]


def _row(shape, row, depth, for_all, on_x, alpha, length) -> dict[str, Any]:
    error = float(row["error"][depth - 1])
    bound, bound_on = for_all[depth - 1], float(on_x.blocks[depth - 1].max())
    size = float(on_x.norms[depth - 1].max())
    return {
        "rule": shape.rule,
        "d": shape.d,
        "heads": shape.heads,
        "width": row["width"],
        "num_blocks": depth,
        "seed": row["seed"],
        "alpha": alpha,
        "length": length,
        "error": error,
        "bound": bound,
        "bound_on": bound_on,
        "norm": size,
        "violated": int(not error <= bound),
        "violated_on": int(not error <= bound_on),
        "vacuous": int(not bound < size),
        "vacuous_on": int(not bound_on < size),
        "ratio": bound / max(error, 1e-300),
        "ratio_on": bound_on / max(error, 1e-300),
    }


def _blocks(shape: Shape, drawn: Drawn, stored: Any, width: int) -> tuple[Any, Any, Any]:
    """Return blocks of the source, blocks of the target, and masks, without padded hidden units."""
    named = PaddedAttention(**stored["attention"])
    layers = tuple(Linear(layer["w"]) for layer in stored["layers"].values())
    source, target, masks = [], [], []
    for b in range(shape.depth):
        block = partial(jax.tree.map, lambda w, b=b: w[b])
        from_block, mask = block(drawn.source), block(Block(named, layers))
        source.append(_narrow(from_block, width))
        masks.append(_narrow(mask, width))
        target.append(block(drawn.target))
    return source, target, masks


def _narrow(block: Block, width: int) -> Block:
    return Block(narrow(block.attention, width), narrow_layers(block.layers, (width,)))
