"""The guaranteed bound against measured errors, on many inputs and every kind of ticket."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import refusals
from test_construction import attention_pair, pruned_transformer

from slth_jax import attention, construction, guarantee, transformer
from slth_jax.transformer import Block
from slth_jax.types import AttentionParams

T, ALPHA = 6, 1.5


def inputs(d, count=40):
    """Rows of norms up to ALPHA, some of them exactly that long, in random directions."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(count, T, d))
    radius = ALPHA * np.minimum(1, rng.random((count, T, 1)) * 1.5)
    return jnp.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True) * radius, jnp.float32)


def worst(apply, ticket, target, x, mask=None):
    difference = jax.vmap(lambda s: apply(ticket, s, mask) - apply(target, s, mask))(x)
    return float(jnp.max(jnp.linalg.norm(difference, axis=-1)))


@pytest.mark.parametrize("n", [6, 48])
def test_attention_error_is_below_the_bound_and_the_bound_is_not_idle(n):
    source, target = attention_pair(n, n)
    masks = construction.prune_attention(source, target)
    ticket = construction.apply_masks(source, masks)
    bound = guarantee.guarantee(source, masks, target, ALPHA, num_tokens=T)
    for mask in (None, attention.causal_mask(T)):
        error = worst(attention.apply, ticket, target, inputs(3), mask)
        assert error <= bound.error
    assert construction.guaranteed_error(source, masks, target, ALPHA, num_tokens=T) == bound.error
    assert bound.error < 200 * error, "a bound this loose would say nothing"
    assert bound.vacuous == (not bound.error < bound.size)
    if n == 48:
        assert not construction.is_vacuous(source, masks, target, ALPHA)


def test_an_empty_mask_is_vacuous_and_a_perfect_ticket_is_only_rounding():
    source, target = attention_pair(12, 12)
    nothing = jax.tree.map(lambda w: jnp.zeros(w.shape, bool), source)
    assert guarantee.is_vacuous(source, nothing, target, ALPHA)
    everything = jax.tree.map(lambda w: jnp.ones(w.shape, bool), target)
    perfect = guarantee.guarantee(target, everything, target, ALPHA)
    assert perfect.error == perfect.round_off > 0
    half = jax.tree.map(lambda w: w * (1 + 1e-3), target)
    moved = guarantee.guarantee(half, everything, target, ALPHA, dtype=jnp.float64)
    assert 1e-4 < moved.error < 0.1 and moved.round_off < 1e-10


@pytest.mark.parametrize("n", [18, pytest.param(120, marks=pytest.mark.slow)])
def test_transformer_error_is_below_the_bound(n):
    source, target, masks, _ = pruned_transformer(n)
    ticket = construction.apply_masks(source, masks)
    bound = guarantee.guarantee(source, masks, target, ALPHA, num_tokens=T)
    error = worst(transformer.apply, ticket, target, inputs(2))
    assert error <= bound.error
    if n == 120:
        assert not bound.vacuous


def test_blocks_whose_layers_are_the_targets_own():
    source, target, masks, _ = pruned_transformer(18)
    mixed = tuple(s._replace(layers=t.layers) for s, t in zip(source, target, strict=True))
    bare = tuple(mask._replace(layers=()) for mask in masks)
    of_attention = construction.apply_masks(
        tuple(s.attention for s in source), tuple(mask.attention for mask in masks)
    )
    ticket = tuple(t._replace(attention=a) for a, t in zip(of_attention, target, strict=True))
    bound = guarantee.guarantee(mixed, bare, target, ALPHA, num_tokens=T)
    whole = guarantee.guarantee(source, masks, target, ALPHA, num_tokens=T)
    assert worst(transformer.apply, ticket, target, inputs(2)) <= bound.error < whole.error


def test_bad_input_is_named():
    source, target = attention_pair()
    masks = construction.prune_attention(source, target)
    with refusals(r"^max_norm must be a number in \[0, inf\), got -1"):
        construction.guaranteed_error(source, masks, target, -1.0)
    with refusals(r"^masks must be booleans of the shapes of source"):
        construction.guaranteed_error(source, masks._replace(w_q=masks.w_q[:1]), target, 1.0)


def random_blocks(seed):
    """Return source, masks at random, and target: two blocks of attention, with large errors."""
    rng = np.random.default_rng(seed)
    h, d, t = (int(rng.integers(low, high)) for low, high in ((1, 4), (1, 4), (2, 8)))

    def layer(n):
        shapes = [(h, d, n)] * 3 + [(h, n, d)]
        return AttentionParams(*(rng.normal(size=shape).astype(np.float32) for shape in shapes))

    source, target = ([Block(layer(n), ()) for _ in range(2)] for n in (5, 2))
    masks = jax.tree.map(lambda w: rng.random(w.shape) < 0.5, source)
    x = rng.normal(size=(3, t, d)) * rng.uniform(0.2, 2)
    return source, masks, target, x.astype(np.float32)


@pytest.mark.parametrize("seed", [0, 12, 24, 34])
def test_the_bound_on_given_inputs_is_never_above_that_for_all(seed):
    """With random masks and few units norms at single rows used to add up to more."""
    source, masks, target, x = random_blocks(seed)
    on_x = guarantee.guarantee_on(source, masks, target, x)
    for s, sequence in enumerate(np.float64(x)):
        alpha = np.linalg.norm(sequence, axis=-1).max()
        for_all = guarantee.guarantee(source, masks, target, alpha, num_tokens=len(sequence))
        assert np.all(on_x.blocks[:, s].max(axis=-1) <= np.array(for_all.blocks) * (1 + 1e-12))


def test_numpy_float64_weights_are_bounded_in_the_dtype_that_computes_them():
    rng = np.random.default_rng(0)
    shapes = [(2, 3, 40)] * 3 + [(2, 40, 3)]
    target = AttentionParams(*(rng.normal(size=shape) for shape in shapes))  # float64
    order = rng.permutation(40)  # the same function, whose sums round differently
    ticket = AttentionParams(*(w[..., order] for w in target[:3]), target.w_o[:, order])
    kept = jax.tree.map(lambda w: np.ones(w.shape, bool), target)
    x = inputs(3, count=8)
    error = float(jnp.max(attention.error(ticket, target, x)))
    assert error > 1e-7, "rounding of float32, whatever the dtype of the weights"
    assert error <= construction.guaranteed_error(ticket, kept, target, ALPHA, num_tokens=T)
    assert error <= construction.guaranteed_error_on(ticket, kept, target, x).max()
    exact = construction.guaranteed_error(ticket, kept, target, ALPHA, dtype=np.float64)
    assert exact < 1e-8
    with refusals(r"^weights must be finite in float16, got NaN or infinity"):
        huge = target._replace(w_q=1e6 * target.w_q)
        construction.guaranteed_error(ticket, kept, huge, ALPHA, dtype=np.float16)


def test_a_bound_is_vacuous_if_zeros_are_guaranteed_as_much():
    _, target = attention_pair(12, 12)
    everything = jax.tree.map(lambda w: jnp.ones(w.shape, bool), target)
    size = ALPHA * float(jnp.sum(jnp.linalg.norm(attention.merge(target).w_vo, 2, axis=(1, 2))))
    for scale in (1.3, 2.2):  # the values' error is 0.3 or 1.2 times the output
        ticket = target._replace(w_v=scale * target.w_v)
        bound = guarantee.guarantee(ticket, everything, target, ALPHA)
        assert bound.size == pytest.approx(size, rel=1e-5)
        assert (
            bound.vacuous
            == (scale > 2)
            == construction.is_vacuous(ticket, everything, target, ALPHA)
        )
        x = jnp.full((1, T, 3), 0.1)
        assert guarantee.guarantee_on(ticket, everything, target, x).vacuous == (scale > 2)
