"""Constructed masks against brute force, and tickets applied as ordinary weights."""

import functools
import itertools
import re
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import refusals

from slth_jax import attention, construction, initializers, transformer
from slth_jax.transformer import Block, Linear
from slth_jax.types import AttentionParams

KEY = jax.random.key(11, impl="threefry2x32")


def uniform(index, *shape):
    return jax.random.uniform(jax.random.fold_in(KEY, index), shape, minval=-1.0)


def closest(samples, value):
    """Return the least error of any subset, in float64."""
    subsets = np.array(list(itertools.product([0, 1], repeat=len(samples))), np.float64)
    return np.abs(subsets @ np.asarray(samples, np.float64) - float(value)).min()


def attention_pair(n_k=12, n_v=10, *, heads=2, d_in=3, d_out=2, **options):
    target = initializers.theory_attention(
        jax.random.fold_in(KEY, 1), num_heads=heads, d_in=d_in, d_out=d_out, n_k=4, n_v=5
    )
    target = jax.tree.map(lambda w: w * 0.4, target)
    source = initializers.theory_attention(
        KEY, num_heads=heads, d_in=d_in, d_out=d_out, n_k=n_k, n_v=n_v, **options
    )
    return source, target


def relu_problem(n=24, i=3, o=2):
    return uniform(3, n, i), uniform(4, o, n), 0.5 * uniform(5, o, i)


@pytest.mark.parametrize("construction_name", ["proof", "reach"])
def test_every_entry_is_the_closest_subset_of_its_group(construction_name):
    left, right, target = uniform(0, 2, 14), uniform(1, 14, 3), uniform(2, 2, 3)
    (left_mask, right_mask), report = construction.solve_product(
        left, right, target, construction=construction_name
    )
    product = np.asarray(left * left_mask, np.float64) @ np.asarray(right * right_mask, np.float64)
    # Grouped over the columns of `right` by 'proof', over the two rows of `left` by 'reach'.
    grouped = right_mask if construction_name == "proof" else left_mask.T
    member = np.asarray(grouped)
    assert member.sum(axis=1).max() == 1, "a unit serves one group"
    beyond = 0
    for i in range(2):
        for j in range(3):
            group = member[:, j if construction_name == "proof" else i]
            samples = np.asarray(left[i] * right[:, j])[group]
            want = closest(samples, target[i, j])
            assert abs(product[i, j] - target[i, j]) == pytest.approx(want, abs=1e-6)
            beyond += (
                target[i, j] > samples.clip(0).sum() or target[i, j] < samples.clip(max=0).sum()
            )
    assert int(report.num_sums) == 6 and int(report.out_of_reach) == beyond
    assert float(report.max_error) == pytest.approx(np.abs(product - target).max(), abs=1e-6)


def test_the_proof_groups_columns_in_order_and_leaves_the_rest_over():
    left_mask, right_mask = construction.prune_product(
        uniform(0, 2, 14), uniform(1, 14, 3), uniform(2, 2, 3), construction="proof"
    )
    want = np.zeros((14, 3), bool)
    for j in range(3):
        want[4 * j : 4 * j + 4, j] = True
    np.testing.assert_array_equal(right_mask, want)
    assert not np.asarray(left_mask)[:, 12:].any()


def test_reach_uses_every_unit_and_meets_values_that_the_proof_cannot():
    left, right = uniform(0, 2, 14), uniform(1, 14, 3)
    big = 3 * uniform(6, 2, 3)
    error = {}
    for name in ("proof", "shift", "fitted", "reach"):
        left_mask, right_mask = construction.prune_product(left, right, big, construction=name)
        error[name] = float(jnp.linalg.norm((left * left_mask) @ (right * right_mask) - big))
    assert np.asarray(left_mask).any(axis=0).all(), "no unit is left over"
    assert error["reach"] < error["proof"]


def test_attention_ticket_is_met_with_masks_over_unchanged_weights():
    x = jax.random.normal(jax.random.fold_in(KEY, 8), (6, 3))
    x = x / jnp.linalg.norm(x, axis=-1, keepdims=True)
    errors = {}
    for n in (12, 48):
        source, target = attention_pair(n, n)
        before = jax.tree.map(np.array, source)
        masks, report = construction.solve_attention(source, target)
        chex.assert_trees_all_equal(before, jax.tree.map(np.asarray, source))
        chex.assert_trees_all_equal_shapes(masks, source)
        assert all(mask.dtype == bool for mask in masks)
        ticket = jax.tree.map(lambda w, m: w * m, source, masks)
        chex.assert_trees_all_equal(ticket, construction.apply_masks(source, masks))
        for mask in (None, attention.causal_mask(6)):
            difference = attention.apply(ticket, x, mask) - attention.apply(target, x, mask)
            errors[n, mask is None] = float(jnp.max(jnp.linalg.norm(difference, axis=-1)))
        merged, expected = attention.merge(ticket), attention.merge(target)
        worst = float(jnp.max(jnp.abs(merged.w_qk - expected.w_qk)))
        # The subset sums report the error of the weights, up to float32 rounding.
        assert worst == pytest.approx(float(report.qk.max_error), abs=1e-5)
    assert errors[48, True] < 0.02 < errors[12, True]
    assert errors[48, False] < 0.05


def test_relu_entries_are_the_closest_subsets_of_both_halves():
    w1, w2, target = relu_problem()
    (mask1, mask2), report = construction.solve_relu_layer(w1, w2, target)
    masked1, masked2 = (np.asarray(w, np.float64) * m for w, m in ((w1, mask1), (w2, mask2)))
    member = np.asarray(mask1)
    assert int(report.num_sums) == 12
    for sign in (1, -1):
        half = np.where(sign * masked1 > 0, masked1, 0)
        product = masked2 @ half
        for i in range(2):
            for j in range(3):
                group = member[:, j] & (sign * np.asarray(w1)[:, j] > 0)
                samples = np.asarray(w2[i] * w1[:, j])[group]
                want = closest(samples, target[i, j])
                assert abs(product[i, j] - target[i, j]) == pytest.approx(want, abs=1e-6)


def test_relu_ticket_computes_the_linear_map_for_both_signs():
    w1, w2, target = relu_problem(n=120)
    mask1, mask2 = construction.prune_relu_layer(w1, w2, target)
    x = jax.random.normal(jax.random.fold_in(KEY, 9), (50, 3))
    output = jax.nn.relu(x @ (w1 * mask1).T) @ (w2 * mask2).T
    assert float(jnp.max(jnp.abs(output - x @ target.T))) < 1e-3


def transformer_pair(n, blocks=2):
    """Return a source and a target of two-layer ReLU nets with biases, d = 2."""
    source, target = [], []
    for b in range(blocks):
        w, bias = partial(uniform, 20 + b), uniform(30 + b, 3)
        layers = (Linear(0.5 * w(3, 2), bias), Linear(0.5 * uniform(40 + b, 2, 3)))
        attn = jax.tree.map(lambda a: 0.5 * a, attention_pair(d_in=2, heads=1)[1])
        target.append(Block(attn, layers))
        drawn = initializers.theory_attention(
            jax.random.fold_in(KEY, b), num_heads=1, d_in=2, d_out=2, n_k=n, n_v=n
        )
        units = initializers.uniform_units(jax.random.fold_in(KEY, 50 + b), 2 * n, (10,))
        source.append(
            Block(
                drawn,
                (
                    Linear(units[:n, :2]),
                    Linear(units[:n, 2:5].T, bias),
                    Linear(units[n:, :3]),
                    Linear(units[n:, 3:5].T),
                ),
            )
        )
    return tuple(source), tuple(target)


@functools.cache
def pruned_transformer(n):
    source, target = transformer_pair(n)
    return (source, target, *construction.solve_transformer(source, target, construction="proof"))


@pytest.mark.slow
def test_transformer_ticket_keeps_biases_and_its_error_falls():
    x = uniform(60, 5, 2)
    errors = []
    for n in (18, 120):
        source, target, masks, report = pruned_transformer(n)
        ticket = construction.apply_masks(source, masks)
        assert masks[0].layers[1].b is None
        np.testing.assert_array_equal(ticket[0].layers[1].b, target[0].layers[0].b)
        difference = transformer.apply(ticket, x) - transformer.apply(target, x)
        errors.append(float(jnp.max(jnp.linalg.norm(difference, axis=-1))))
        assert int(report.num_sums) == 2 * (4 + 4 + 2 * (6 + 6))
    assert errors[1] < 5e-3 < errors[0]
    source, target, masks, _ = pruned_transformer(18)
    layers = construction.prune_layers(source[0].layers, target[0].layers, construction="proof")
    chex.assert_trees_all_equal(layers, masks[0].layers)


def nan(w):
    return w.at[(0,) * w.ndim].set(jnp.nan)


BAD = [
    (lambda s, t: (s._replace(w_q=s.w_q[:1]), t), r"^source.w_q must be of shape \(2, 3, any\)"),
    (lambda s, t: (s, t._replace(w_k=t.w_k[..., :2])), r"^target.w_k must be of shape"),
    (lambda s, t: (s, t._replace(w_v=nan(t.w_v))), r"^target.w_v must be finite, got 1 NaN"),
    (lambda s, t: (s._replace(w_o=nan(s.w_o)), t), r"^source.w_o must be finite, got 1 NaN"),
    (
        lambda s, t: (AttentionParams(s.w_q[..., :2], s.w_k[..., :2], s.w_v, s.w_o), t),
        r"^source n_k must be at least 3, one hidden unit per group, got 2",
    ),
]


@pytest.mark.parametrize("change, message", BAD)
def test_bad_attention_gives_one_line(change, message):
    with refusals(message) as caught:
        construction.prune_attention(*change(*attention_pair()))
    assert "\n" not in str(caught.value)


def test_other_bad_input_is_named():
    source, target = attention_pair()
    allowed = ", ".join(map(repr, construction.RULES))
    with refusals(rf"^construction must be one of {allowed}, got 'best'"):
        construction.prune_attention(source, target, construction="best")
    with refusals(r"^right must be of shape \(14, any\)"):
        construction.prune_product(uniform(0, 2, 14), uniform(1, 13, 3), uniform(2, 2, 3))
    with refusals(r"hidden width n of w1 and w2 must be at least 6"):
        construction.prune_relu_layer(*relu_problem(n=5))
    blocks, of_target = transformer_pair(18, blocks=1)
    with refusals(r"^source must be 1 blocks, as many as target, got 0"):
        construction.prune_transformer((), of_target)
    wrong = (Linear(blocks[0].layers[1].w, jnp.ones(3)),)
    other = (blocks[0]._replace(layers=blocks[0].layers[:1] + wrong + blocks[0].layers[2:]),)
    with refusals(r"^source must be a net with the target's biases"):
        construction.prune_transformer(other, of_target)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda m: m.astype(jnp.float32), "float32 of shape (2, 3, 12)"),
        (lambda m: m.astype(jnp.int32), "int32 of shape (2, 3, 12)"),
        (lambda m: m[:1], "bool of shape (1, 3, 12)"),
        (lambda m: True, "bool of shape ()"),
    ],
)
def test_masks_that_are_no_booleans_of_the_weights_are_refused(change, message):
    source, _ = attention_pair()
    masks = jax.tree.map(lambda w: w > 0, source)
    changed = masks._replace(w_k=change(masks.w_k))
    expected = f"masks must be booleans of the shape (2, 3, 12) of their weights, got {message}"
    with refusals(f"^{re.escape(expected)}$"):
        construction.apply_masks(source, changed)


@pytest.mark.slow
def test_masks_are_applied_to_lists_of_blocks_as_to_tuples():
    shape = {"num_blocks": 2, "num_heads": 2, "d": 2, "hidden": [], "n_k": 8, "n_v": 8}
    source = list(initializers.theory_transformer(KEY, units=[12], **shape))
    source = [block._replace(layers=list(block.layers)) for block in source]
    target = [
        Block(a, (Linear(jnp.eye(2)),))
        for a in initializers.theory_blocks(KEY, num_blocks=2, num_heads=2, d=2, n_k=2, n_v=2)
    ]
    masks = construction.prune_transformer(source, target)
    ticket = construction.apply_masks(source, masks)
    plain = tuple(block._replace(layers=tuple(block.layers)) for block in source)
    chex.assert_trees_all_equal(ticket, construction.apply_masks(plain, masks))
    chex.assert_trees_all_equal(ticket, construction.apply_masks(source, list(masks)))


def test_no_heads_and_no_widths_are_refused():
    source, target = attention_pair()
    empty = jax.tree.map(lambda w: w[:0], target)
    with refusals(r"^params.w_q must be an array without empty dimensions, got shape \(0, 3, 4\)"):
        attention.apply(empty, jnp.ones((2, 3)))
    with refusals(r"^target.w_q must be an array without empty dimensions"):
        construction.prune_attention(source, empty)
