"""Every variant of edge-popup through every property."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cells import cells
from refusals import refusals

from slth_jax import edge_popup, supermask

KEY = jax.random.key(5, impl="threefry2x32")
SHAPES = {"a": (2, 6, 8), "b": (8, 3)}  # two matrices in one array, and one
OPTIMIZER = edge_popup.Schedule(steps=20, weight_decay=0.0).optimizer(0.05)
KEEP = jnp.float32(0.3)


def size_masks(key, scores, weights, keep):
    """Rank by |weight x score|."""
    return supermask.from_tree(jax.tree.map(jnp.multiply, scores, weights), keep)


def sampled_masks(key, scores, weights, keep):
    """Keep each connection with the chance sigmoid(score), whatever `keep` is."""
    return jax.random.bernoulli(key, jax.nn.sigmoid(scores))


def through_chance(scores, mask):
    return supermask.straight_through_raw(jax.nn.sigmoid(scores), mask)


VARIANTS = {
    **edge_popup.VARIANTS,
    "stacked": edge_popup.Variant(scope="matrix"),
    "size": edge_popup.Variant(masks=size_masks),
    "sampled": edge_popup.Variant(masks=sampled_masks, through=through_chance),
    "annealed": edge_popup.Variant(
        keep_at=lambda keep, step: jnp.maximum(keep, 1 - (1 - keep) * step / 10)
    ),
}
pytestmark = pytest.mark.parametrize("name", cells(VARIANTS, fast=("ramanujan", "sampled")))


def source(seed):
    keys = jax.random.split(jax.random.fold_in(KEY, seed), len(SHAPES))
    return {n: jax.random.normal(k, s) for k, (n, s) in zip(keys, SHAPES.items(), strict=True)}


def started(name, seed):
    weights = source(seed)
    key = jax.random.fold_in(KEY, 100 + seed)
    scores = edge_popup.init_scores(key, weights, VARIANTS[name])
    return edge_popup.start(weights, edge_popup.Trainable(scores, {}), OPTIMIZER)


def loss(params, batch):
    x, y = batch
    hidden = jax.nn.relu(x @ params["a"][0]) + jax.nn.relu(x @ params["a"][1])
    return jnp.mean((hidden @ params["b"] - y) ** 2)


def batch(seed):
    x = jax.random.normal(jax.random.fold_in(KEY, 200 + seed), (16, 6))
    return x, jnp.tanh(x[:, :3])


def plain_step(name):
    """The step of a variant; weights are re-drawn between steps, not in them."""
    variant = dataclasses.replace(VARIANTS[name], redraw_every=0)

    def step(state, batch, keep):
        key = jax.random.fold_in(KEY, state.step)
        return edge_popup.step(
            key, state, batch, keep, loss=loss, optimizer=OPTIMIZER, variant=variant
        )

    return step


def moments(state):
    """Adam's first moments: the scores' gradients, before they become signs."""
    return state.opt_state.inner_state[0].mu


@functools.cache
def compiled_step(name):
    return jax.jit(plain_step(name))


def test_shapes_dtypes_and_exact_counts(name):
    variant, state = VARIANTS[name], started(name, 0)
    chex.assert_trees_all_equal_shapes_and_dtypes(state.trainable.scores, state.weights)
    for keep in (0.05, 0.3, 0.5, 1.0):
        masks = edge_popup.masks(KEY, state.trainable.scores, state.weights, keep, variant)
        assert {n: (m.shape, m.dtype) for n, m in masks.items()} == {
            n: (shape, jnp.bool_) for n, shape in SHAPES.items()
        }
        if name == "sampled":
            continue
        if variant.scope == "global":
            size = sum(mask.size for mask in masks.values())
            assert sum(int(m.sum()) for m in masks.values()) == supermask.num_kept(size, keep)
            continue
        for mask in masks.values():
            axes = (-2, -1) if variant.scope == "matrix" else None
            size = mask.shape[-2] * mask.shape[-1] if axes else mask.size
            np.testing.assert_array_equal(mask.sum(axes), supermask.num_kept(size, keep))


def test_masks_rank_as_numpy_sorts(name):
    variant, state = VARIANTS[name], started(name, 1)
    scores, weights = state.trainable.scores, state.weights
    masks = edge_popup.masks(KEY, scores, weights, 0.3, variant)
    if name == "sampled":
        again = edge_popup.masks(jax.random.key(9), scores, weights, 0.3, variant)
        assert not np.array_equal(masks["a"], again["a"])
        return
    ranks = {n: np.asarray(s) if name == "raw_score" else np.abs(s) for n, s in scores.items()}
    if name == "size":
        ranks = {n: rank * np.abs(weights[n]) for n, rank in ranks.items()}
    parts = [(ranks[n].reshape(-1), np.asarray(masks[n]).reshape(-1)) for n in SHAPES]
    if variant.scope == "global":
        parts = [tuple(map(np.concatenate, zip(*parts, strict=True)))]
    elif variant.scope == "matrix":
        split = [np.split(x, 2) for x in parts[0]]
        parts = [*zip(*split, strict=True), parts[1]]
    for value, mask in parts:
        kept = np.argsort(-value, kind="stable")[: supermask.num_kept(value.size, 0.3)]
        np.testing.assert_array_equal(np.flatnonzero(mask), np.sort(kept))


def test_compiled_is_eager_and_the_second_call_compiles_nothing(name):
    step, state = compiled_step(name), started(name, 0)
    eager, expected = plain_step(name)(state, batch(0), KEEP)
    after, metrics = step(state, batch(0), KEEP)
    np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], expected["grad_norm"], rtol=1e-5)
    chex.assert_trees_all_close(moments(after), moments(eager), atol=1e-6)
    step(started(name, 1), batch(1), jnp.float32(0.7))
    assert step._cache_size() == 1


def test_vmap_is_a_loop(name):
    step, states = compiled_step(name), [started(name, seed) for seed in range(3)]
    keep = jnp.array([0.2, 0.5, 0.9])
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    batches = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(batch, range(3)))
    lifted = jax.jit(jax.vmap(plain_step(name)))
    together, metrics = lifted(stacked, batches, keep)
    for run, state in enumerate(states):
        alone, expected = step(state, batch(run), keep[run])
        np.testing.assert_allclose(metrics["loss"][run], expected["loss"], rtol=1e-5)
        mine = jax.tree.map(lambda leaf, run=run: leaf[run], together)
        chex.assert_trees_all_close(moments(mine), moments(alone), atol=1e-6)


def test_training_moves_scores_only_and_lowers_the_loss(name):
    step, state = compiled_step(name), started(name, 2)
    before, first = jax.tree.map(np.asarray, state.weights), None
    for _ in range(15):
        state, metrics = step(state, batch(0), KEEP)
        first = metrics["loss"] if first is None else first
    chex.assert_trees_all_equal(before, state.weights)
    if name not in ("sampled", "annealed"):  # their losses are under other masks at every step
        assert metrics["loss"] < 0.95 * first


def test_a_step_alone_refuses_to_redraw_and_the_loop_does_it(name):
    variant = VARIANTS[name]
    if not variant.redraw_every:
        plain_step(name)(started(name, 0), batch(0), KEEP)
        return
    with refusals(r"^variant must be with redraw_every=0 .* got redraw_"):
        edge_popup.step(
            KEY, started(name, 0), batch(0), KEEP, loss=loss, optimizer=OPTIMIZER, variant=variant
        )
