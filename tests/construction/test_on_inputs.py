"""The bound on given inputs against measured errors, against the bound for all, and by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import refusals
from test_construction import attention_pair, pruned_transformer
from test_guarantee import ALPHA, T, inputs

from slth_jax import attention, construction, guarantee, transformer
from slth_jax.guarantee import given_inputs
from slth_jax.transformer import Block, Linear
from slth_jax.types import AttentionParams

MASKS = (None, np.tril(np.ones((T, T), bool)))


def errors(apply, source, masks, target, x, attn_mask=None):
    """Return the error of each row `[s, t]`, in the dtype of the networks."""
    ticket = construction.apply_masks(source, masks)
    run = jax.jit(jax.vmap(lambda net, s: apply(net, s, attn_mask), in_axes=(None, 0)))
    difference = np.asarray(run(ticket, x), np.float64) - np.asarray(run(target, x), np.float64)
    return np.linalg.norm(difference, axis=-1)


@pytest.mark.parametrize("attn_mask", MASKS, ids=["all", "causal"])
@pytest.mark.parametrize("n", [6, 48])
def test_attention_errs_less_than_the_bound_row_by_row(n, attn_mask):
    source, target = attention_pair(n, n)
    masks = construction.prune_attention(source, target, construction="proof")
    x = inputs(3)
    bound = guarantee.guarantee_on(source, masks, target, x, attn_mask)
    measured = errors(attention.apply, source, masks, target, x, attn_mask)
    assert np.all(measured <= bound.rows)
    for_all = construction.guaranteed_error(source, masks, target, ALPHA, num_tokens=T)
    assert np.all(bound.error < 0.7 * for_all)
    if n == 6:
        assert np.median(bound.rows / measured) < 2, "a bound this loose would say nothing"
    given = construction.guaranteed_error_on(source, masks, target, x, attn_mask)
    np.testing.assert_array_equal(given, bound.rows.max(axis=1))
    alone = construction.guaranteed_error_on(source, masks, target, x[0], attn_mask)
    assert alone == pytest.approx(given[0], rel=1e-9) and alone.ndim == 0


@pytest.mark.parametrize("attn_mask", MASKS, ids=["all", "causal"])
@pytest.mark.parametrize("n", [18, 120])
def test_a_transformer_errs_less_than_the_bound_behind_every_block(n, attn_mask):
    source, target, masks, _ = pruned_transformer(n)
    x = inputs(2)
    bound = guarantee.guarantee_on(source, masks, target, x, attn_mask)
    for_all = guarantee.guarantee(source, masks, target, ALPHA, num_tokens=T)
    for b in (1, 2):
        nets = source[:b], masks[:b], target[:b]
        measured = errors(transformer.apply, *nets, x, attn_mask)
        assert np.all(measured <= bound.blocks[b - 1])
        assert bound.blocks[b - 1].max() < for_all.blocks[b - 1]
        if n == 18:  # else rounding is most of both
            assert bound.blocks[b - 1].max() < 0.6 * for_all.blocks[b - 1]
            assert np.median(bound.blocks[b - 1] / measured) < 4
    assert np.all(bound.vacuous == np.any(bound.rows >= bound.norms[-1], axis=1))
    output = jax.vmap(lambda s: transformer.apply(target, s, attn_mask))(x)
    np.testing.assert_allclose(bound.norms[-1], np.linalg.norm(output, axis=-1), rtol=1e-5)


def test_both_bounds_and_the_error_agree_where_it_can_be_worked_out_by_hand():
    """Tokens 1 and -1; logits of the target -k x_i x_j, of the ticket k x_i x_j; the same values.

    The gap of the logits goes from -2 k to 2 k: they change by e = 2 k either way, and the weight
    of a token's own value w from ``s = 1 / (1 + e^(2k))`` to ``1 - s``. So the output moves by
    ``2 w (1 - 2 s) = 2 w tanh(k)``, which is ``2 tanh(e / 2) w``.
    """
    k, w = 0.3, 1.7

    def network(slope):
        parts = (slope, 1.0, w, 1.0)
        return AttentionParams(*(jnp.full((1, 1, 1), part, jnp.float32) for part in parts))

    ticket, target = network(k), network(-k)
    kept = jax.tree.map(lambda part: jnp.ones(part.shape, bool), ticket)
    x = jnp.asarray([[1.0], [-1.0]])
    want = 2 * w * math.tanh(k)
    on_x = construction.guaranteed_error_on(ticket, kept, target, x, dtype=jnp.float64)
    for_all = construction.guaranteed_error(ticket, kept, target, 1.0, dtype=jnp.float64)
    measured = errors(attention.apply, ticket, kept, target, x[None]).max()
    assert on_x == pytest.approx(want, rel=1e-6)
    assert for_all == pytest.approx(want, rel=1e-6)
    assert measured == pytest.approx(want, rel=1e-5)


def test_layers_by_hand_units_that_are_off_pass_nothing_on():
    """One token: attention gives it nothing; F is relu(W x + b) twice, the ticket's W is larger."""
    zero = AttentionParams(*(jnp.zeros((1, 2, 2), jnp.float32),) * 4)
    eye = jnp.eye(2, dtype=jnp.float32)
    bias = jnp.asarray([0.0, -5.0])
    target = (Block(zero, (Linear(eye, bias), Linear(eye))),)
    # Pairs of layers: units for the positive and the negative part of each coordinate.
    first = jnp.asarray([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    second = jnp.asarray([[1.0, -1, 0, 0], [0, 0, 1, -1]])
    pair = (Linear(first), Linear(second * 1.125, bias), Linear(first), Linear(second))
    source = (Block(zero, pair),)
    kept = jax.tree.map(lambda part: jnp.ones(part.shape, bool), source)
    kept = (kept[0]._replace(layers=tuple(layer._replace(b=None) for layer in kept[0].layers)),)
    x = jnp.asarray([[2.0, 3.0]])
    # The first coordinate is passed on 1.125 times; the second stays below its threshold of 5.
    on_x = construction.guaranteed_error_on(source, kept, target, x, dtype=jnp.float64)
    assert on_x == pytest.approx(0.25, rel=1e-6)
    measured = errors(transformer.apply, source, kept, target, x[None])
    assert measured.max() == pytest.approx(0.25, rel=1e-6)
    for_all = construction.guaranteed_error(source, kept, target, 13**0.5, dtype=jnp.float64)
    assert for_all > on_x


def test_a_perfect_ticket_only_rounds_and_slices_of_sequences_change_nothing(monkeypatch):
    source, target, masks, _ = pruned_transformer(18)
    kept = tuple(
        Block(jax.tree.map(lambda w: jnp.ones(w.shape, bool), block.attention), ())
        for block in target
    )
    x = inputs(2, count=5)
    perfect = guarantee.guarantee_on(target, kept, target, x)
    assert 0 < perfect.error.max() < 1e-3 and perfect.round_off.min() > 0
    exact = guarantee.guarantee_on(target, kept, target, x, dtype=jnp.float64)
    assert exact.error.max() < 1e-12
    whole = construction.guaranteed_error_on(source, masks, target, x)
    monkeypatch.setattr(given_inputs, "_ENTRIES", 1)
    np.testing.assert_allclose(
        construction.guaranteed_error_on(source, masks, target, x), whole, rtol=1e-9
    )


def test_bad_input_is_named():
    source, target, masks, _ = pruned_transformer(18)
    x = inputs(2)
    with refusals(r"^inputs must be finite, of shape \(any, any, 2\)"):
        construction.guaranteed_error_on(source, masks, target, inputs(3))
    with refusals(r"^attn_mask must be of shape \(6, 6\), True at least"):
        construction.guaranteed_error_on(source, masks, target, x, np.zeros((T, T), bool))
    first = masks[0].layers[0]
    dense = (masks[0].layers[0]._replace(w=jnp.ones_like(first.w)), *masks[0].layers[1:])
    dense = (masks[0]._replace(layers=dense), *masks[1:])
    with refusals(r"^masks must be one coordinate a ReLU unit, got"):
        construction.guaranteed_error_on(source, dense, target, x)
    with refusals(r"^masks must be one coordinate a ReLU unit, got"):
        construction.guaranteed_error(source, dense, target, ALPHA)
