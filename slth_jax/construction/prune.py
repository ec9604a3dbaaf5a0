"""The theorems made executable: a target and a random source to the masks of a ticket.

Every entry of a target matrix becomes one subset sum over products of source weights (Lemmas 4
and 7). Hidden units are dealt to the columns of one factor; a unit serves its own column only.
Masks are booleans of the shapes of the unchanged source weights.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from slth_jax import checks
from slth_jax.construction import fits, matrices, networks, rules
from slth_jax.construction.rules.deal import Rule
from slth_jax.transformer import Block, Linear
from slth_jax.types import ArrayLike, AttentionParams, PyTree


def prune_product(
    left: ArrayLike,
    right: ArrayLike,
    target: ArrayLike,
    *,
    construction: str | Rule = "fitted",
    with_report: bool = False,
):
    """Mask two random matrices so that their product is `target` (Lemmas 4 and 7).

    ``target_ij ~ sum_k (left * left_mask)_ik (right * right_mask)_kj``. With 'proof' the n hidden
    units are split, in order, into r groups of ``n' = n // r``, one per column of `right`;
    `right_mask` keeps exactly group j in column j, and the ``n - r n'`` units left over are
    kept by neither mask. Entry (i, j) is then a subset sum over ``left_ik right_kj``, k in group
    j. 'reach' groups over the smaller outer dimension, leaves no unit over, and lets the groups
    take turns in choosing the unit with the largest weight to their coordinate: it reaches
    larger targets at the same width. 'shift' deals like 'reach' what is left when it has connected
    a few units to blocks of up to eight columns: each row keeps or drops each of those, and so
    tries its targets at several distances from the middle of what it reaches. 'fitted', the
    default, has such units too, and deals the others with a look at the target: so that half the
    sum of an entry's samples, about which its subset sums lie densest, is close to its target.

    Args:
      left: `[..., p, n]`.
      right: `[..., n, r]`.
      target: `[..., p, r]`.
      construction: a name in `rules.RULES` ('proof', 'reach', 'shift', 'fitted'), or a rule.
      with_report: also return a `Report`.

    Returns:
      Boolean `left_mask [..., p, n]` and `right_mask [..., n, r]`, then the report if asked for.

    Raises:
      ValueError: shapes that do not fit, values that are not finite, or fewer hidden units than
        columns.
    """
    rule = rules.get(construction)
    left = checks.array("left", left, min_ndim=2, kind="wide")
    *batch, p, n = left.shape
    right = checks.array("right", right, shape=(*batch, n, None), kind="wide")
    r = right.shape[-1]
    target = checks.array("target", target, shape=(*batch, p, r), kind="wide")
    groups = min(p, r) if rule.either_side else r
    width = matrices.hidden_width(left, right)
    fits.check_width("the hidden width n of left and right", n, width, groups)
    masks, report = networks.prune_product(left, right, target, rule=rule)
    return (*masks, report) if with_report else masks


def prune_attention(
    source: AttentionParams,
    target: AttentionParams,
    *,
    construction: str | Rule = "fitted",
    with_report: bool = False,
):
    """Mask a random attention layer so that it computes a given one (Theorems 3 and 9).

    Query-key: `left` is ``w_q / sqrt(n_k)`` and the grouped factor `right` is ``w_k^T``, for the
    target ``w_qk``. Value-output: the grouped factor is ``w_v^T`` (so groups are over d_in, as
    the bound on n_v says) and `left` is ``w_o^T``, for the target ``w_vo^T``.

    Args:
      source: `w_q, w_k [h, m, n_k]`, `w_v [h, m, n_v]`, `w_o [h, n_v, o]`.
      target: the same h, m and o; any d_k, d_v.
      construction: a name in `rules.RULES` or a rule, see `prune_product`.
      with_report: also return an `AttentionReport`.

    Returns:
      Masks as `AttentionParams` of booleans, shaped like `source`; then the report if asked for.

    Raises:
      ValueError: mismatched heads or widths, values that are not finite, or a source narrower
        than one hidden unit per input coordinate.

    Examples:
      >>> from slth_jax import initializers
      >>> draw, shape = initializers.theory_attention, {"num_heads": 1, "d_in": 2, "d_out": 2}
      >>> target = draw(jax.random.key(0), n_k=2, n_v=2, **shape)
      >>> source = draw(jax.random.key(1), n_k=32, n_v=32, **shape)
      >>> masks, report = prune_attention(source, target, with_report=True)
      >>> ticket = apply_masks(source, masks)  # source weights times masks, nothing else
      >>> ticket.w_q.shape, bool(report.qk.max_error < 0.1), int(report.vo.num_sums)
      ((1, 2, 32), True, 4)
    """
    rule = rules.get(construction)
    fits.check_attention(source, target, rule)
    masks, report = networks.prune_attention(source, target, rule=rule)
    return (masks, report) if with_report else masks


def prune_relu_layer(
    w1: ArrayLike,
    w2: ArrayLike,
    target: ArrayLike,
    *,
    construction: str | Rule = "fitted",
    with_report: bool = False,
):
    """Mask a random two-layer ReLU net so that it computes a linear map (Lemma 2).

    ``target x ~ (w2 * mask2) relu((w1 * mask1) x)``. Units are grouped over input coordinates as
    in `prune_product`. Within a group, units with ``w1_kj > 0`` carry the positive part of x_j
    and the others its negative part, so every entry is two subset sums over ``w2_ik w1_kj``, each
    with value `target_ij` over its own half (Pensia et al. 2020).

    Args:
      w1: `[n, i]`. w2: `[o, n]`. target: `[o, i]`.
      construction, with_report: as in `prune_product`; groups are always over i.

    Returns:
      Boolean `mask1 [n, i]` and `mask2 [o, n]`, then a `Report` if asked for.

    Raises:
      ValueError: as `prune_product`.
    """
    source = (Linear(jnp.asarray(w1)), Linear(jnp.asarray(w2)))
    goal = (Linear(jnp.asarray(target)),)
    rule = rules.get(construction)
    fits.check_layers(source, goal, ("w1", "w2", "target"))
    (mask1, mask2), (report,) = networks.prune_layers(source, goal, rule=rule)
    return (mask1.w, mask2.w, report) if with_report else (mask1.w, mask2.w)


def prune_layers(
    source: Sequence[Linear],
    target: Sequence[Linear],
    *,
    construction: str | Rule = "fitted",
    with_report: bool = False,
):
    """Mask a random ReLU net of 2 L layers so that it computes one of L layers (Theorem 10).

    Layers 2l and 2l + 1 of `source` stand for layer l of `target`. Biases are never masked: the
    source must hold the target's biases on its odd layers, and their masks are None.

    Args:
      source: 2 L layers. target: L layers.
      construction: as in `prune_relu_layer`.
      with_report: also return a list of `Report`, one per layer of `target`.

    Raises:
      ValueError: another number of layers, biases that differ, and all that `prune_relu_layer`
        raises.
    """
    rule = rules.get(construction)
    fits.check_layers(source, target)
    masks, reports = networks.prune_layers(tuple(source), tuple(target), rule=rule)
    return (masks, reports) if with_report else masks


def prune_transformer(
    source: Sequence[Block],
    target: Sequence[Block],
    *,
    construction: str | Rule = "fitted",
    with_report: bool = False,
):
    """Mask a random transformer so that it computes a given one (Theorems 11 and 14).

    Block by block: `prune_attention` and `prune_layers`.

    Args:
      source: blocks whose ReLU nets have twice the target's layers, with its biases.
      target: blocks without normalisation; those without layers are attention only.
      construction: a name in `rules.RULES` or a rule, see `prune_product`.
      with_report: also return a `Report`.

    Returns:
      Masks, one `Block` of booleans per block; None for biases. Then the report if asked for.

    Raises:
      ValueError: different numbers of blocks or layers, and all that `prune_attention` raises.
    """
    if len(source) != len(target):
        raise checks.fail("source", f"{len(target)} blocks, as many as target", len(source))
    rule = rules.get(construction)
    for from_block, to_block in zip(source, target, strict=True):
        fits.check_attention(from_block.attention, to_block.attention, rule)
        fits.check_layers(from_block.layers, to_block.layers)
    masks, report = networks.prune_transformer(tuple(source), tuple(target), rule=rule)
    return (masks, report) if with_report else masks


def apply_masks(source: PyTree, masks: PyTree) -> PyTree:
    """Return ``source * mask`` leaf by leaf; weights whose mask is None stay as they are."""
    return jax.tree.map(
        lambda mask, weight: weight if mask is None else weight * mask.astype(weight.dtype),
        masks,
        source,
        is_leaf=lambda leaf: leaf is None,
    )
