"""Attention, ReLU layers and transformers as products of matrices, and solved ones as masks.

Every function gathers all matrices of a network into one batch of problems (`matrices.solve`), and
returns masks and a report.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from slth_jax import attention
from slth_jax.construction import matrices
from slth_jax.construction.matrices import Problem, Report, Solved, joined
from slth_jax.construction.rules.deal import Rule
from slth_jax.transformer import Block, Linear
from slth_jax.types import AttentionParams


class AttentionReport(NamedTuple):
    """Reports of the two merged matrices."""

    qk: Report
    vo: Report


@partial(jax.jit, static_argnames="rule")
def prune_product(left, right, target, width, *, rule: Rule):
    """Return the two masks and a report; arguments as `matrices.prune`."""
    *masks, report = matrices.prune(left, right, target, rule=rule, width=width)
    return tuple(masks), report


@partial(jax.jit, static_argnames="rule")
def prune_attention(source, target, n_k, n_v, *, rule: Rule):
    """Return masks and an `AttentionReport`."""
    qk, vo = matrices.solve(_attention_problems(source, target, n_k, n_v, rule))
    return _attention_masks(qk, vo), AttentionReport(qk=qk.report, vo=vo.report)


@partial(jax.jit, static_argnames="rule")
def prune_layers(source, target, widths, *, rule: Rule):
    """Return the masks of pairs of layers and a report of each pair."""
    solved = matrices.solve(_layer_problems(source, target, widths, rule))
    reports = [
        joined([plus.report, minus.report])
        for plus, minus in zip(solved[::2], solved[1::2], strict=True)
    ]
    return _layer_masks(solved), reports


@partial(jax.jit, static_argnames="rule")
def prune_transformer(source, target, sizes, *, rule: Rule):
    """Return masks and a report; `sizes` holds ``((n_k, n_v), hidden widths)`` of each block."""
    problems = []
    for from_block, to_block, (of_attention, of_layers) in zip(source, target, sizes, strict=True):
        n_k, n_v = of_attention
        problems += _attention_problems(from_block.attention, to_block.attention, n_k, n_v, rule)
        problems += _layer_problems(from_block.layers, to_block.layers, of_layers, rule)
    solved = matrices.solve(problems)
    report = joined([part.report for part in solved])
    masks = []
    for to_block in target:
        (qk, vo), solved = solved[:2], solved[2:]
        count = 2 * len(to_block.layers)
        masks.append(Block(_attention_masks(qk, vo), _layer_masks(solved[:count])))
        solved = solved[count:]
    return tuple(masks), report


def _attention_problems(source, target, n_k, n_v, rule: Rule) -> list[Problem]:
    """Return query-key and value-output as products; both are grouped over the input."""
    merged = attention.merge(target)
    # The barrier keeps the division one: XLA makes x / sqrt(n) into x * rsqrt(n), or into a product
    # with 1 / sqrt(n), as n is known or not and devices are one or more, and each rounds otherwise.
    root = jax.lax.optimization_barrier(jnp.sqrt(jnp.asarray(n_k, source.w_q.dtype)))
    turn = jnp.matrix_transpose
    qk = (source.w_q / root, turn(source.w_k), merged.w_qk)
    vo = (turn(source.w_o), turn(source.w_v), turn(merged.w_vo))
    return [matrices.product(*qk, rule, n_k), matrices.product(*vo, rule, n_v)]


def _attention_masks(qk: Solved, vo: Solved) -> AttentionParams:
    return AttentionParams(
        w_q=qk.left_mask,
        w_k=jnp.matrix_transpose(qk.right_mask),
        w_v=jnp.matrix_transpose(vo.right_mask),
        w_o=jnp.matrix_transpose(vo.left_mask),
    )


def _layer_problems(source, target, widths, rule: Rule) -> list[Problem]:
    """Return two problems a layer of `target`, for the positive and negative parts of its input.

    Nothing can be shifted across the ReLU: a unit of a block would carry a sum of its inputs.
    """
    rule = rule.without_shifts()
    problems = []
    for first, second, layer, width in zip(source[::2], source[1::2], target, widths, strict=True):
        for half in matrices.split_by_sign(rule.deal(first.w, width), first.w):
            problems.append(Problem(second.w, first.w, layer.w, half, rule))
    return problems


def _layer_masks(solved: Sequence[Solved]) -> tuple[Linear, ...]:
    masks = []
    for plus, minus in zip(solved[::2], solved[1::2], strict=True):
        masks += [
            Linear(plus.right_mask | minus.right_mask),
            Linear(plus.left_mask | minus.left_mask),
        ]
    return tuple(masks)
