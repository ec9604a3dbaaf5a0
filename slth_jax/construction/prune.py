"""Find masks under which a random product, attention layer or network approximates a target.

Every entry of a target matrix becomes one subset sum over products of source weights (Lemmas 4 and
7). Each function writes its network as products of two matrices and solves all products with one
call of `engine.solve`. Each function returns boolean masks with the shapes of the source weights.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from slth_jax import attention, checks
from slth_jax.construction import engine, relu, rules
from slth_jax.construction.engine import Problem, Pruned, Report, Solved
from slth_jax.construction.rules import Rule
from slth_jax.transformer import Block
from slth_jax.types import (
    Array,
    ArrayLike,
    AttentionParams,
    PaddedAttention,
    Projections,
    PyTree,
)


class AttentionReport(NamedTuple):
    """Reports on the two merged matrices: query-key (`w_q w_k^T`) and value-output (`w_v w_o`)."""

    qk: Report
    vo: Report


def prune_product(
    left: ArrayLike, right: ArrayLike, target: ArrayLike, *, construction: str | Rule = "fitted"
) -> tuple[Array, Array]:
    """Return the masks of `solve_product`: `left_mask [..., p, n]`, `right_mask [..., n, r]`."""
    return solve_product(left, right, target, construction=construction).masks


def solve_product(
    left: ArrayLike, right: ArrayLike, target: ArrayLike, *, construction: str | Rule = "fitted"
) -> Pruned:
    """Mask two random matrices so that their product approximates `target` (Lemmas 4 and 7).

    ``target_ij ~ sum_k (left * left_mask)_ik (right * right_mask)_kj``. Rules differ in how they
    assign the n hidden units to groups, usually one group per column of `target`:

    - 'proof': there are r groups of ``n' = n // r`` consecutive units, one group per column of
      `right`. `right_mask` keeps exactly group j in column j, and both masks drop the ``n - r n'``
      remaining units. Entry (i, j) is then a subset sum over ``left_ik right_kj`` with k in group
      j.
    - 'reach': there is one group per row of `left` or per column of `right`, whichever are fewer.
      The groups choose in turn the unused unit with the largest weight, until every unit is used.
      Larger targets can then be approximated at the same source width.
    - 'shift': like 'reach', but a few hidden units, the shift units, are each connected to a block
      of up to eight columns. A row that keeps a shift unit moves its targets in the block. For each
      block a row tries several choices of shift units and takes the one with the smallest error.
    - 'fitted', the default: like 'shift', but the other units are assigned so that half the sum of
      an entry's samples is close to the target entry, because subset sums are densest there.
    - 'band': an entry takes b mask bits and is not a subset sum. 2^b units start at each column of
      `right`, and each row of `left` keeps one of them per column, chosen by a shortest path
      (`construction.band`).

    Args:
      left: the first random matrix `[..., p, n]`.
      right: the second random matrix `[..., n, r]`.
      target: the matrix to approximate `[..., p, r]`.
      construction: a `Rule`, or the name of a rule in `rules.RULES`.

    Returns:
      Boolean masks `(left_mask [..., p, n], right_mask [..., n, r])`, and a `Report`.

    Raises:
      ValueError: shapes do not fit, values are not finite, or there are fewer hidden units than
        groups.
    """
    rule = rules.get(construction)
    left = checks.array("left", left, min_ndim=2, kind="factor")
    *batch, p, n = left.shape
    right = checks.array("right", right, shape=(*batch, n, None), kind="factor")
    r = right.shape[-1]
    target = checks.array("target", target, shape=(*batch, p, r), kind="factor")
    groups = min(p, r) if rule.either_side else r
    width = engine.hidden_width(left, right)
    engine.validate_width("the hidden width n of left and right", n, width, groups)
    return _solve_product(left, right, target, rule=rule)


def prune_attention(
    source: Projections, target: Projections, *, construction: str | Rule = "fitted"
) -> Projections:
    """Return the masks of `solve_attention`: booleans with the shapes of `source`.

    Examples:
      >>> from slth_jax import initializers
      >>> draw, shape = initializers.theory_attention, {"num_heads": 1, "d_in": 2, "d_out": 2}
      >>> target = draw(jax.random.key(0), n_k=2, n_v=2, **shape)
      >>> source = draw(jax.random.key(1), n_k=32, n_v=32, **shape)
      >>> masks = prune_attention(source, target)
      >>> ticket = apply_masks(source, masks)  # source weights times masks, nothing else
      >>> x = jax.random.normal(jax.random.key(2), (5, 2))
      >>> ticket.w_q.shape, bool(attention.error(ticket, target, x) < 0.2)
      ((1, 2, 32), True)
    """
    return solve_attention(source, target, construction=construction).masks


def solve_attention(
    source: Projections, target: Projections, *, construction: str | Rule = "fitted"
) -> Pruned:
    """Mask a random attention layer so that it approximates a given one (Theorems 3 and 9).

    The layer is written as two products, which are solved as in `solve_product`. The first product
    approximates ``w_qk``: `left` is ``w_q / sqrt(n_k)`` and `right` is ``w_k^T``. The second
    approximates ``w_vo^T``: `left` is ``w_o^T`` and `right` is ``w_v^T``. Units are thus grouped
    over the d_in input coordinates, as in the theorem's bound on n_v.

    Cross-attention is solved in the same way, with ``w_qk [m, n]`` and ``w_vo [l, o]``: units are
    grouped over the input coordinates of keys (n) and of values (l). Every head of the source has
    its own keys and values, since the theorem approximates ``w_qk`` of each head. If the target has
    grouped queries, each head is therefore approximated with a copy of the keys and values that it
    shares.

    Args:
      source: the random layer: `w_q [h, m, n_k]`, `w_k [h, n, n_k]`, `w_v [h, l, n_v]`,
        `w_o [h, n_v, o]`.
      target: the layer to approximate, with the same h, m, n, l and o. The target's key width d_k,
        its value width d_v and its number of key/value heads are free.
      construction: a `Rule`, or the name of a rule, see `solve_product`.

    Returns:
      The masks, of the same type as `source`, and an `AttentionReport`.

    Raises:
      ValueError: the numbers of heads or the widths do not match, values are not finite, or the
        source has fewer hidden units than groups.
    """
    rule = rules.get(construction)
    validate_attention(source, target, rule)
    return _solve_attention(source, target, rule=rule)


def prune_transformer(
    source: Sequence[Block], target: Sequence[Block], *, construction: str | Rule = "fitted"
) -> tuple[Block, ...]:
    """Return the masks of `solve_transformer`: blocks of booleans, with None for biases."""
    return solve_transformer(source, target, construction=construction).masks


def solve_transformer(
    source: Sequence[Block], target: Sequence[Block], *, construction: str | Rule = "fitted"
) -> Pruned:
    """Mask a random transformer so that it approximates a given one (Theorems 11 and 14).

    Each block is masked as in `solve_attention` and `solve_layers`.

    Args:
      source: one random block for each block of `target`. A source block has two ReLU layers for
        each layer of the target block: the first has no bias, the second has the bias of the target
        layer.
      target: blocks without normalisation. A block without ReLU layers consists of attention only.
      construction: a `Rule`, or the name of a rule, see `solve_product`.

    Returns:
      The masks (one `Block` of booleans per block, with None for biases), and one `Report` on all
      subset sums.

    Raises:
      ValueError: the numbers of blocks do not match, or `solve_attention` or `solve_layers` would
        raise an error.
    """
    checks.sequence("source", source, Block)
    checks.sequence("target", target, Block)
    if not target:
        raise checks.fail("target", "at least one block", "none")
    if len(source) != len(target):
        raise checks.fail("source", f"{len(target)} blocks, as many as target", len(source))
    rule = rules.get(construction)
    for source_block, target_block in zip(source, target, strict=True):
        validate_attention(source_block.attention, target_block.attention, rule)
        relu.validate_layers(source_block.layers, target_block.layers)
    return _solve_transformer(tuple(source), tuple(target), rule=rule)


def apply_masks(source: PyTree, masks: PyTree) -> PyTree:
    """Multiply each array of `source` by its mask; arrays whose mask is None stay unchanged.

    A list in `source` matches a tuple in `masks`, and vice versa; the result contains tuples.

    Raises:
      ValueError: a mask is not boolean, or the tree structure or shapes of masks and weights
        differ.
    """
    masks, source = _with_tuples(masks), _with_tuples(source)

    def masked(mask: Any, weight: Any) -> Any:
        if mask is None:
            return weight
        kind = str(getattr(mask, "dtype", type(mask).__name__))
        if kind != "bool" or jnp.shape(mask) != jnp.shape(weight):
            allowed = f"booleans of the shape {jnp.shape(weight)} of their weights"
            raise checks.fail("masks", allowed, f"{kind} of shape {jnp.shape(mask)}")
        return weight * jnp.asarray(mask).astype(weight.dtype)

    try:
        tree: Any = jax.tree.structure(masks, is_leaf=_is_none)
        weights = tree.flatten_up_to(source)
    except ValueError as error:
        raise checks.fail("masks", "of the tree of the weights", type(masks).__name__) from error
    return tree.unflatten(map(masked, tree.flatten_up_to(masks), weights))


def _is_none(leaf: Any) -> bool:
    return leaf is None


def _with_tuples(tree: PyTree) -> PyTree:
    """Replace the lists in a tree by tuples."""
    if not isinstance(tree, (list, tuple)):
        return tree
    parts = map(_with_tuples, tree)
    return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)


def validate_attention(source: Projections, target: Projections, rule: Rule) -> None:
    """Refuse a source layer whose shapes do not fit the target, or with too few hidden units."""
    for name, params in (("source", source), ("target", target)):
        checks.record(name, params, Projections)
    factor = partial(checks.array, kind="factor")
    h, m, d_k = factor("target.w_q", target.w_q, ndim=3).shape
    g, n, _ = factor("target.w_k", target.w_k, shape=(None, None, d_k)).shape
    _, l, d_v = factor("target.w_v", target.w_v, shape=(g, None, None)).shape
    o = factor("target.w_o", target.w_o, shape=(h, d_v, None)).shape[-1]
    for name, w in (("w_q", target.w_q), ("w_k", target.w_k)):
        if 0 in w.shape:
            allowed = "an array without empty dimensions"
            raise checks.fail(f"target.{name}", allowed, f"shape {w.shape}")
    if h % g:
        raise checks.fail("target.w_k", f"of a number of heads that divides {h}", g)
    n_k = factor("source.w_q", source.w_q, shape=(h, m, None)).shape[-1]
    factor("source.w_k", source.w_k, shape=(h, n, n_k))
    n_v = factor("source.w_v", source.w_v, shape=(h, l, None)).shape[-1]
    factor("source.w_o", source.w_o, shape=(h, n_v, o))
    for name, units, width, ends in (
        ("source n_k", n_k, source.key_width, (n, m)),
        ("source n_v", n_v, source.value_width, (l, o)),
    ):
        engine.validate_width(name, units, width, min(ends) if rule.either_side else ends[0])


@partial(jax.jit, static_argnames="rule")
def _solve_product(left, right, target, *, rule: Rule) -> Pruned:
    (solved,) = engine.solve([engine.product(left, right, target, rule)])
    return Pruned((solved.left_mask, solved.right_mask), solved.report)


@partial(jax.jit, static_argnames="rule")
def _solve_attention(source, target, *, rule: Rule) -> Pruned:
    qk, vo = engine.solve(_attention_problems(source, target, rule))
    return Pruned(_attention_masks(source, qk, vo), AttentionReport(qk=qk.report, vo=vo.report))


@partial(jax.jit, static_argnames="rule")
def _solve_transformer(source, target, *, rule: Rule) -> Pruned:
    problems = []
    for source_block, target_block in zip(source, target, strict=True):
        problems += _attention_problems(source_block.attention, target_block.attention, rule)
        problems += relu.layer_problems(source_block.layers, target_block.layers, rule)
    solved = engine.solve(problems)
    report = engine.joined([part.report for part in solved])
    masks = []
    for block in source:
        (qk, vo), solved = solved[:2], solved[2:]
        count = len(block.layers)  # two problems per layer of the target
        layers = relu.layer_masks(solved[:count])
        masks.append(Block(_attention_masks(block.attention, qk, vo), layers))
        solved = solved[count:]
    return Pruned(tuple(masks), report)


def _attention_problems(source, target, rule: Rule) -> list[Problem]:
    """Return two problems: the query-key product and the value-output product."""
    merged = attention.merge(target)
    # The barrier keeps the division as it is. Otherwise XLA replaces x / sqrt(n) by x * rsqrt(n) or
    # by x * (1 / sqrt(n)), depending on the number of devices and on whether n is known, and each
    # of these rounds differently.
    root = jax.lax.optimization_barrier(jnp.sqrt(jnp.asarray(source.key_width, source.w_q.dtype)))
    turn = jnp.matrix_transpose
    qk = (source.w_q / root, turn(source.w_k), merged.w_qk)
    vo = (turn(source.w_o), turn(source.w_v), turn(merged.w_vo))
    return [
        engine.product(*qk, rule, source.key_width),
        engine.product(*vo, rule, source.value_width),
    ]


def _attention_masks(source: Projections, qk: Solved, vo: Solved) -> Projections:
    """Return the masks as projections of the same type as `source`, with the same padding."""
    turn = jnp.matrix_transpose
    masks = qk.left_mask, turn(qk.right_mask), turn(vo.right_mask), turn(vo.left_mask)
    if isinstance(source, PaddedAttention):
        return PaddedAttention(*masks, source.k_units != 0, source.v_units != 0)
    return AttentionParams(*masks)
