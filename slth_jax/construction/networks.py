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
def prune_product(left, right, target, *, rule: Rule):
    """Return the two masks and a report; arguments as `matrices.prune`."""
    *masks, report = matrices.prune(left, right, target, rule=rule)
    return tuple(masks), report


@partial(jax.jit, static_argnames="rule")
def prune_attention(source, target, *, rule: Rule):
    """Return masks and an `AttentionReport`."""
    qk, vo = matrices.solve(_attention_problems(source, target, rule))
    return _attention_masks(source, qk, vo), AttentionReport(qk=qk.report, vo=vo.report)


@partial(jax.jit, static_argnames="rule")
def prune_layers(source, target, *, rule: Rule):
    """Return the masks of pairs of layers and a report of each pair."""
    solved = matrices.solve(_layer_problems(source, target, rule))
    reports = [
        joined([plus.report, minus.report])
        for plus, minus in zip(solved[::2], solved[1::2], strict=True)
    ]
    return _layer_masks(solved), reports


@partial(jax.jit, static_argnames="rule")
def prune_transformer(source, target, *, rule: Rule):
    """Return the masks of blocks and one report."""
    problems = []
    for of_source, of_target in zip(source, target, strict=True):
        problems += _attention_problems(of_source.attention, of_target.attention, rule)
        problems += _layer_problems(of_source.layers, of_target.layers, rule)
    solved = matrices.solve(problems)
    report = joined([part.report for part in solved])
    masks = []
    for block in source:
        (qk, vo), solved = solved[:2], solved[2:]
        count = len(block.layers)
        masks.append(Block(_attention_masks(block.attention, qk, vo), _layer_masks(solved[:count])))
        solved = solved[count:]
    return tuple(masks), report


def _attention_problems(source, target, rule: Rule) -> list[Problem]:
    """Return query-key and value-output as products; both are grouped over the input."""
    merged = attention.merge(target)
    # The barrier keeps the division one: XLA makes x / sqrt(n) into x * rsqrt(n), or into a product
    # with 1 / sqrt(n), as n is known or not and devices are one or more, and each rounds otherwise.
    root = jax.lax.optimization_barrier(jnp.sqrt(jnp.asarray(source.key_width, source.w_q.dtype)))
    turn = jnp.matrix_transpose
    qk = (source.w_q / root, turn(source.w_k), merged.w_qk)
    vo = (turn(source.w_o), turn(source.w_v), turn(merged.w_vo))
    return [
        matrices.product(*qk, rule, source.key_width),
        matrices.product(*vo, rule, source.value_width),
    ]


def _attention_masks(source: AttentionParams, qk: Solved, vo: Solved) -> AttentionParams:
    """Return the masks of `source`, which know its padding."""
    return jax.tree.map(lambda w: w != 0, source)._replace(
        w_q=qk.left_mask,
        w_k=jnp.matrix_transpose(qk.right_mask),
        w_v=jnp.matrix_transpose(vo.right_mask),
        w_o=jnp.matrix_transpose(vo.left_mask),
    )


def _layer_problems(source, target, rule: Rule) -> list[Problem]:
    """Return two problems a layer of `target`, for the positive and negative parts of its input.

    Nothing can be shifted across the ReLU: a unit of a block would carry a sum of its inputs.
    """
    rule = rule.for_relu()
    problems = []
    for first, second, layer in zip(source[::2], source[1::2], target, strict=True):
        width = matrices.hidden_width(second.w, first.w)
        deal = rule.deal(first.w, width, left=second.w, target=layer.w)
        for half in matrices.split_by_sign(deal, first.w):
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
