"""The theorems made executable: a target and a random source to the masks of a ticket.

Every entry of a target matrix becomes one subset sum over products of source weights (Lemmas 4
and 7). Hidden units are dealt to the columns of one factor; a unit serves its own column only.
Masks are booleans of the shapes of the unchanged source weights.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from slth_jax import attention, checks, entries
from slth_jax.entries import Problem, Report, Solved, product_problem, relu_problems, turn
from slth_jax.grouping import CONSTRUCTIONS
from slth_jax.guarantee import check_biases, guaranteed_error, is_vacuous
from slth_jax.transformer import Block, Linear
from slth_jax.types import Array, ArrayLike, AttentionParams, PyTree

__all__ = [
    "CONSTRUCTIONS",
    "AttentionReport",
    "Report",
    "TransformerReport",
    "apply_masks",
    "guaranteed_error",
    "is_vacuous",
    "prune_attention",
    "prune_layers",
    "prune_product",
    "prune_relu_layer",
    "prune_transformer",
]


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


def prune_product(
    left: ArrayLike,
    right: ArrayLike,
    target: ArrayLike,
    *,
    construction: str = "proof",
    width: ArrayLike | None = None,
    with_report: bool = False,
):
    """Mask two random matrices so that their product is `target` (Lemmas 4 and 7).

    ``target_ij ~ sum_k (left * left_mask)_ik (right * right_mask)_kj``. With 'proof' the n hidden
    units are split, in order, into r groups of ``n' = n // r``, one per column of `right`;
    `right_mask` keeps exactly group j in column j, and the ``n - r n'`` units left over are
    kept by neither mask. Entry (i, j) is then a subset sum over ``left_ik right_kj``, k in group
    j. 'reach' groups over the smaller outer dimension, leaves no unit over, and lets the groups
    take turns in choosing the unit with the largest weight to their coordinate: it reaches
    larger targets at the same width.

    Args:
      left: `[..., p, n]`.
      right: `[..., n, r]`.
      target: `[..., p, r]`.
      construction: 'proof' or 'reach'.
      width: number of hidden units where the factors are padded with zero units; may be traced.
      with_report: also return a `Report`.

    Returns:
      Boolean `left_mask [..., p, n]` and `right_mask [..., n, r]`, then the report if asked for.

    Raises:
      ValueError: shapes that do not fit, values that are not finite, or fewer hidden units than
        columns.
    """
    left = checks.array("left", left, min_ndim=2)
    *batch, p, n = left.shape
    right = checks.array("right", right, shape=(*batch, n, None))
    r = right.shape[-1]
    target = checks.array("target", target, shape=(*batch, p, r))
    checks.choice("construction", construction, CONSTRUCTIONS)
    groups = r if construction == "proof" else min(p, r)
    _check_width("the hidden width n of left and right", n, width, groups)
    width = n if width is None else width
    left_mask, right_mask, report = _prune_product(
        left, right, target, width, construction=construction
    )
    return (left_mask, right_mask, report) if with_report else (left_mask, right_mask)


def prune_attention(
    source: AttentionParams,
    target: AttentionParams,
    *,
    construction: str = "proof",
    widths: tuple[ArrayLike, ArrayLike] | None = None,
    with_report: bool = False,
):
    """Mask a random attention layer so that it computes a given one (Theorems 3 and 9).

    Query-key: `left` is ``w_q / sqrt(n_k)`` and the grouped factor `right` is ``w_k^T``, for the
    target ``w_qk``. Value-output: the grouped factor is ``w_v^T`` (so groups are over d_in, as
    the bound on n_v says) and `left` is ``w_o^T``, for the target ``w_vo^T``.

    Args:
      source: `w_q, w_k [h, m, n_k]`, `w_v [h, m, n_v]`, `w_o [h, n_v, o]`.
      target: the same h, m and o; any d_k, d_v.
      construction: 'proof' or 'reach', see `prune_product`.
      widths: ``(n_k, n_v)`` where `source` is padded with zero units; may be traced.
      with_report: also return an `AttentionReport`.

    Returns:
      Masks as `AttentionParams` of booleans, shaped like `source`; then the report if asked for.

    Raises:
      ValueError: mismatched heads or widths, values that are not finite, or a source narrower
        than one hidden unit per input coordinate.
    """
    checks.choice("construction", construction, CONSTRUCTIONS)
    _check_attention(source, target, construction, widths or (None, None))
    n_k, n_v = widths or (source.w_q.shape[-1], source.w_v.shape[-1])
    masks, report = _prune_attention(source, target, n_k, n_v, construction=construction)
    return (masks, report) if with_report else masks


def prune_relu_layer(
    w1: ArrayLike,
    w2: ArrayLike,
    target: ArrayLike,
    *,
    construction: str = "proof",
    width: ArrayLike | None = None,
    with_report: bool = False,
):
    """Mask a random two-layer ReLU net so that it computes a linear map (Lemma 2).

    ``target x ~ (w2 * mask2) relu((w1 * mask1) x)``. Units are grouped over input coordinates as
    in `prune_product`. Within a group, units with ``w1_kj > 0`` carry the positive part of x_j
    and the others its negative part, so every entry is two subset sums over ``w2_ik w1_kj``, each
    with value `target_ij` over its own half (Pensia et al. 2020).

    Args:
      w1: `[n, i]`. w2: `[o, n]`. target: `[o, i]`.
      construction, width, with_report: as in `prune_product`; groups are always over i.

    Returns:
      Boolean `mask1 [n, i]` and `mask2 [o, n]`, then a `Report` if asked for.

    Raises:
      ValueError: as `prune_product`.
    """
    source = (Linear(jnp.asarray(w1)), Linear(jnp.asarray(w2)))
    goal = (Linear(jnp.asarray(target)),)
    checks.choice("construction", construction, CONSTRUCTIONS)
    widths = _check_layers(
        source, goal, None if width is None else (width,), ("w1", "w2", "target")
    )
    (mask1, mask2), (report,) = _prune_layers(source, goal, widths, construction=construction)
    return (mask1.w, mask2.w, report) if with_report else (mask1.w, mask2.w)


def prune_layers(
    source: Sequence[Linear],
    target: Sequence[Linear],
    *,
    construction: str = "proof",
    widths: Sequence[ArrayLike] | None = None,
    with_report: bool = False,
):
    """Mask a random ReLU net of 2 L layers so that it computes one of L layers (Theorem 10).

    Layers 2l and 2l + 1 of `source` stand for layer l of `target`. Biases are never masked: the
    source must hold the target's biases on its odd layers, and their masks are None.

    Args:
      source: 2 L layers. target: L layers.
      construction: as in `prune_relu_layer`.
      widths: the numbers of hidden units, one per layer of `target`, where `source` is padded
        with zero units; may be traced.
      with_report: also return a list of `Report`, one per layer of `target`.

    Raises:
      ValueError: another number of layers, biases that differ, and all that `prune_relu_layer`
        raises.
    """
    checks.choice("construction", construction, CONSTRUCTIONS)
    widths = _check_layers(source, target, widths)
    masks, reports = _prune_layers(tuple(source), tuple(target), widths, construction=construction)
    return (masks, reports) if with_report else masks


def prune_transformer(
    source: Sequence[Block],
    target: Sequence[Block],
    *,
    construction: str = "proof",
    widths: tuple[ArrayLike, Any] | None = None,
    with_report: bool = False,
):
    """Mask a random transformer so that it computes a given one (Theorems 11 and 14).

    Block by block: `prune_attention` and `prune_layers`.

    Args:
      source: blocks whose ReLU nets have twice the target's layers, with its biases.
      target: blocks without normalisation; those without layers are attention only.
      construction: 'proof' or 'reach', see `prune_product`.
      widths: ``(n_mha, n_fc)`` where `source` is padded with zero units; may be traced. `n_fc`
        is one number for all layers, or one for each layer of a block.
      with_report: also return a `TransformerReport`.

    Returns:
      Masks, one `Block` of booleans per block; None for biases. Then the report if asked for.

    Raises:
      ValueError: different numbers of blocks or layers, and all that `prune_attention` raises.
    """
    if len(source) != len(target):
        raise checks.fail("source", f"{len(target)} blocks, as many as target", len(source))
    checks.choice("construction", construction, CONSTRUCTIONS)
    n_mha: Any
    n_fc: Any
    n_mha, n_fc = (None, None) if widths is None else widths
    sizes = []
    for from_block, to_block in zip(source, target, strict=True):
        attn = from_block.attention
        _check_attention(attn, to_block.attention, construction, (n_mha, n_mha))
        one = not (n_fc is None or isinstance(n_fc, (tuple, list)))
        of_layers = _check_layers(
            from_block.layers, to_block.layers, [n_fc] * len(to_block.layers) if one else n_fc
        )
        n_k, n_v = attn.w_q.shape[-1], attn.w_v.shape[-1]
        sizes.append(((n_k, n_v) if n_mha is None else (n_mha, n_mha), of_layers))
    masks, report = _prune_transformer(
        tuple(source), tuple(target), sizes, construction=construction
    )
    return (masks, report) if with_report else masks


def apply_masks(source: PyTree, masks: PyTree) -> PyTree:
    """Return ``source * mask`` leaf by leaf; weights whose mask is None stay as they are."""
    return jax.tree.map(
        lambda mask, weight: weight if mask is None else weight * mask.astype(weight.dtype),
        masks,
        source,
        is_leaf=lambda leaf: leaf is None,
    )


@partial(jax.jit, static_argnames="construction")
def _prune_product(left, right, target, width, *, construction):
    return entries.solve([product_problem(left, right, target, width, construction)])[0]


@partial(jax.jit, static_argnames="construction")
def _prune_attention(source, target, n_k, n_v, *, construction):
    qk, vo = entries.solve(_attention_problems(source, target, n_k, n_v, construction))
    return _attention_masks(qk, vo), AttentionReport(qk=qk.report, vo=vo.report)


def _attention_problems(source, target, n_k, n_v, construction: str) -> list[Problem]:
    merged = attention.merge(target)
    root = jnp.sqrt(jnp.asarray(n_k, source.w_q.dtype))
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
def _prune_layers(source, target, widths, *, construction):
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
def _prune_transformer(source, target, sizes, *, construction):
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


def _check_width(name: str, n: int, width: ArrayLike | None, needed: int) -> None:
    """Refuse a source that has less than one hidden unit for each of `needed` groups."""
    if n < needed:
        raise checks.fail(name, f"at least {needed}, one hidden unit per group", n)
    known = None if width is None else checks.concrete(width)
    if known is not None:
        checks.integer(name, known.item(), low=needed, high=n)


def _check_attention(
    source: AttentionParams, target: AttentionParams, construction: str, widths: tuple
) -> None:
    """Refuse a source and a target that do not fit."""
    h, m, _ = checks.array("target.w_q", target.w_q, ndim=3).shape
    checks.array("target.w_k", target.w_k, shape=target.w_q.shape)
    d_v = checks.array("target.w_v", target.w_v, shape=(h, m, None)).shape[-1]
    o = checks.array("target.w_o", target.w_o, shape=(h, d_v, None)).shape[-1]
    n_k = checks.array("source.w_q", source.w_q, shape=(h, m, None)).shape[-1]
    checks.array("source.w_k", source.w_k, shape=(h, m, n_k))
    n_v = checks.array("source.w_v", source.w_v, shape=(h, m, None)).shape[-1]
    checks.array("source.w_o", source.w_o, shape=(h, n_v, o))
    _check_width("source n_k", n_k, widths[0], m)
    _check_width("source n_v", n_v, widths[1], m if construction == "proof" else min(m, o))


def _check_layers(
    source: Sequence[Linear],
    target: Sequence[Linear],
    widths: Sequence[ArrayLike] | None,
    names: tuple[str, str, str] | None = None,
) -> tuple[ArrayLike, ...]:
    """Refuse ReLU nets that do not fit, and return the hidden widths.

    `names` are those of the first pair of layers and of its target in the error messages.
    """
    if len(source) != 2 * len(target):
        allowed = f"a ReLU net of {2 * len(target)} layers, twice the target's"
        raise checks.fail("source", allowed, f"{len(source)} layers")
    if widths is not None and len(widths) != len(target):
        raise checks.fail("widths", f"{len(target)} numbers, one a layer", len(widths))
    found: list[ArrayLike] = []
    for l, layer in enumerate(target):
        first, second = source[2 * l], source[2 * l + 1]
        of1, of2, of_target = names or (
            f"source[{2 * l}].w",
            f"source[{2 * l + 1}].w",
            f"target[{l}].w",
        )
        o, i = checks.array(of_target, layer.w, ndim=2).shape
        n = checks.array(of1, first.w, shape=(None, i)).shape[0]
        checks.array(of2, second.w, shape=(o, n))
        width = None if widths is None else widths[l]
        _check_width(f"the hidden width n of {of1} and {of2}", n, width, 2 * i)
        check_biases(first, second, layer)
        found.append(n if width is None else width)
    return tuple(found)
