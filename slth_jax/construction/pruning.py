"""Layers and transformers as matrices to be met, and solved matrices back as masks of layers.

`construction` holds the public functions; here is what they compile. Every function gathers all
its matrices into one batch of subset sums (`entries.solve`).
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from slth_jax import attention
from slth_jax.construction import entries
from slth_jax.construction.entries import (
    Problem,
    Report,
    Solved,
    product_problem,
    relu_problems,
    turn,
)
from slth_jax.transformer import Block, Linear
from slth_jax.types import Array, AttentionParams


class AttentionReport(NamedTuple):
    """Reports of the two merged matrices."""

    qk: Report
    vo: Report


class TransformerReport(NamedTuple):
    """What all subset sums of a transformer reached, see `Report`."""

    num_sums: Array
    out_of_reach: Array
    num_optimal: Array
    max_error: Array


@partial(jax.jit, static_argnames="construction")
def prune_product(left, right, target, width, *, construction):
    """Return a `Solved` for one product; arguments as `construction.prune_product`."""
    return entries.solve([product_problem(left, right, target, width, construction)])[0]


@partial(jax.jit, static_argnames="construction")
def prune_attention(source, target, n_k, n_v, *, construction):
    """Return masks and an `AttentionReport`."""
    qk, vo = entries.solve(_attention_problems(source, target, n_k, n_v, construction))
    return _attention_masks(qk, vo), AttentionReport(qk=qk.report, vo=vo.report)


def _attention_problems(source, target, n_k, n_v, construction: str) -> list[Problem]:
    merged = attention.merge(target)
    # The barrier keeps the division one: XLA makes x / sqrt(n) into x * rsqrt(n), or into a product
    # with 1 / sqrt(n), as n is known or not and devices are one or more, and each rounds otherwise.
    root = jax.lax.optimization_barrier(jnp.sqrt(jnp.asarray(n_k, source.w_q.dtype)))
    qk = (source.w_q / root, turn(source.w_k), merged.w_qk, n_k)
    vo = (turn(source.w_o), turn(source.w_v), turn(merged.w_vo), n_v)
    return [product_problem(*qk, construction), product_problem(*vo, construction)]


def _attention_masks(qk: Solved, vo: Solved) -> AttentionParams:
    return AttentionParams(
        w_q=qk.left_mask,
        w_k=turn(qk.right_mask),
        w_v=turn(vo.right_mask),
        w_o=turn(vo.left_mask),
    )


@partial(jax.jit, static_argnames="construction")
def prune_layers(source, target, widths, *, construction):
    """Return the masks of pairs of layers and a report of each pair."""
    solved = entries.solve(_layer_problems(source, target, widths, construction))
    return _layer_masks(solved), [
        _joined(plus.report, minus.report)
        for plus, minus in zip(solved[::2], solved[1::2], strict=True)
    ]


def _layer_problems(source, target, widths, construction: str) -> list[Problem]:
    """Return two problems a layer of `target`, for the positive and negative parts of its input."""
    return [
        problem
        for first, second, layer, width in zip(
            source[::2], source[1::2], target, widths, strict=True
        )
        for problem in relu_problems(first.w, second.w, layer.w, width, construction)
    ]


def _layer_masks(solved: Sequence[Solved]) -> tuple[Linear, ...]:
    masks = []
    for plus, minus in zip(solved[::2], solved[1::2], strict=True):
        masks += [
            Linear(plus.right_mask | minus.right_mask),
            Linear(plus.left_mask | minus.left_mask),
        ]
    return tuple(masks)


def _joined(one: Report, other: Report) -> Report:
    return Report(
        num_sums=one.num_sums + other.num_sums,
        out_of_reach=one.out_of_reach + other.out_of_reach,
        num_optimal=one.num_optimal + other.num_optimal,
        max_error=jnp.maximum(one.max_error, other.max_error),
        mean_error=(one.mean_error + other.mean_error) / 2,  # as many sums in each half
    )


@partial(jax.jit, static_argnames="construction")
def prune_transformer(source, target, sizes, *, construction):
    """Return masks and a report; `sizes` holds ``((n_k, n_v), hidden widths)`` of each block."""
    problems = []
    for from_block, to_block, (of_attention, of_layers) in zip(source, target, sizes, strict=True):
        n_k, n_v = of_attention
        problems += _attention_problems(
            from_block.attention, to_block.attention, n_k, n_v, construction
        )
        problems += _layer_problems(from_block.layers, to_block.layers, of_layers, construction)
    solved = entries.solve(problems)
    reports = jax.tree.map(lambda *parts: jnp.stack(parts), *(part.report for part in solved))
    report = TransformerReport(
        num_sums=jnp.sum(reports.num_sums),
        out_of_reach=jnp.sum(reports.out_of_reach),
        num_optimal=jnp.sum(reports.num_optimal),
        max_error=jnp.max(reports.max_error),
    )
    masks = []
    for to_block in target:
        (qk, vo), solved = solved[:2], solved[2:]
        count = 2 * len(to_block.layers)
        masks.append(Block(_attention_masks(qk, vo), _layer_masks(solved[:count])))
        solved = solved[count:]
    return tuple(masks), report
