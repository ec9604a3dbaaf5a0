"""Every variant of edge-popup through every property."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import refusals

from slth_jax import edge_popup, supermask

KEY = jax.random.key(5, impl="threefry2x32")
SHAPES = {"a": (2, 6, 8), "b": (8, 3)}  # two matrices in one array, and one
RECIPE = edge_popup.Recipe(steps=20, weight_decay=0.0)
HPARAMS = edge_popup.Hparams(jnp.float32(0.3), jnp.float32(0.05))

pytestmark = pytest.mark.parametrize("name", edge_popup.VARIANTS)


def source(seed):
    keys = jax.random.split(jax.random.fold_in(KEY, seed), len(SHAPES))
    return {n: jax.random.normal(k, s) for k, (n, s) in zip(keys, SHAPES.items(), strict=True)}


def started(name, seed):
    weights = source(seed)
    key = jax.random.fold_in(KEY, 100 + seed)
    scores = edge_popup.init_scores(key, weights, edge_popup.VARIANTS[name])
    return edge_popup.start(weights, edge_popup.Trainable(scores, {}), RECIPE)


def loss(params, batch):
    x, y = batch
    hidden = jax.nn.relu(x @ params["a"][0]) + jax.nn.relu(x @ params["a"][1])
    return jnp.mean((hidden @ params["b"] - y) ** 2)


def batch(seed):
    x = jax.random.normal(jax.random.fold_in(KEY, 200 + seed), (16, 6))
    return x, jnp.tanh(x[:, :3])


def plain_step(name):
    """The step of a variant; weights are re-drawn between steps, not in them."""
    variant = dataclasses.replace(edge_popup.VARIANTS[name], redraw_every=0)

    def step(state, batch, hparams):
        return edge_popup.step(state, batch, hparams, loss=loss, recipe=RECIPE, variant=variant)

    return step


@functools.cache
def compiled_step(name):
    return jax.jit(plain_step(name))


def test_shapes_dtypes_and_exact_counts(name):
    variant, state = edge_popup.VARIANTS[name], started(name, 0)
    chex.assert_trees_all_equal_shapes_and_dtypes(state.trainable.scores, state.weights)
    for keep in (0.05, 0.3, 0.5, 1.0):
        found = edge_popup.masks(state.trainable.scores, keep, variant)
        assert {n: (m.shape, m.dtype) for n, m in found.items()} == {
            n: (shape, jnp.bool_) for n, shape in SHAPES.items()
        }
        if variant.scope == "global":
            size = sum(mask.size for mask in found.values())
            assert sum(int(m.sum()) for m in found.values()) == supermask.num_kept(size, keep)
            continue
        for mask in found.values():
            size = mask.shape[-2] * mask.shape[-1]
            np.testing.assert_array_equal(mask.sum((-2, -1)), supermask.num_kept(size, keep))


def test_masks_rank_as_numpy_sorts(name):
    variant, scores = edge_popup.VARIANTS[name], started(name, 1).trainable.scores
    found = edge_popup.masks(scores, 0.3, variant)
    ranked = {n: np.abs(s) if variant.magnitude else np.asarray(s) for n, s in scores.items()}
    parts = [(ranked[n].reshape(-1), np.asarray(found[n]).reshape(-1)) for n in SHAPES]
    if variant.scope == "global":
        parts = [tuple(map(np.concatenate, zip(*parts, strict=True)))]
    else:
        split = [np.split(x, 2) for x in parts[0]]
        parts = [*zip(*split, strict=True), parts[1]]
    for value, mask in parts:
        kept = np.argsort(-value, kind="stable")[: supermask.num_kept(value.size, 0.3)]
        np.testing.assert_array_equal(np.flatnonzero(mask), np.sort(kept))


def test_compiled_is_eager_and_the_second_call_compiles_nothing(name):
    step, state = compiled_step(name), started(name, 0)
    eager, told = plain_step(name)(state, batch(0), HPARAMS)
    after, metrics = step(state, batch(0), HPARAMS)
    np.testing.assert_allclose(metrics["loss"], told["loss"], rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], told["grad_norm"], rtol=1e-5)
    chex.assert_trees_all_close(after.opt_state[0].mu, eager.opt_state[0].mu, atol=1e-6)
    other = edge_popup.Hparams(jnp.float32(0.7), jnp.float32(0.01))
    step(started(name, 1), batch(1), other)
    assert step._cache_size() == 1


def test_vmap_is_a_loop(name):
    step, states = compiled_step(name), [started(name, seed) for seed in range(3)]
    keep, rate = jnp.array([0.2, 0.5, 0.9]), jnp.array([0.01, 0.02, 0.03])
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    batches = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(batch, range(3)))
    lifted = jax.jit(jax.vmap(plain_step(name)))
    together, metrics = lifted(stacked, batches, edge_popup.Hparams(keep, rate))
    for run, state in enumerate(states):
        hparams = edge_popup.Hparams(keep[run], rate[run])
        alone, told = step(state, batch(run), hparams)
        np.testing.assert_allclose(metrics["loss"][run], told["loss"], rtol=1e-5)
        mine = jax.tree.map(lambda leaf, run=run: leaf[run], together)
        chex.assert_trees_all_close(mine.opt_state[0].mu, alone.opt_state[0].mu, atol=1e-6)


def test_training_moves_scores_only_and_lowers_the_loss(name):
    step, state = compiled_step(name), started(name, 2)
    before, first = jax.tree.map(np.asarray, state.weights), None
    for _ in range(15):
        state, metrics = step(state, batch(0), HPARAMS)
        first = metrics["loss"] if first is None else first
    assert metrics["loss"] < 0.95 * first
    chex.assert_trees_all_equal(before, state.weights)


def test_a_step_alone_refuses_to_redraw_and_the_loop_does_it(name):
    variant = edge_popup.VARIANTS[name]
    if not variant.redraw_every:
        plain_step(name)(started(name, 0), batch(0), HPARAMS)
        return
    with refusals(r"^variant must be with redraw_every=0 .* got redraw_"):
        edge_popup.step(
            started(name, 0), batch(0), HPARAMS, loss=loss, recipe=RECIPE, variant=variant
        )
    often = dataclasses.replace(variant, redraw_every=3, redraw_rate=1.0)
    recipe = edge_popup.Recipe(steps=4)
    found = edge_popup.fit(
        KEY, source(0), loss, batch, keep=0.3, recipe=recipe, learning_rate=0.0, variant=often,
        draw=lambda key: {n: jnp.full(s, 7.0) for n, s in SHAPES.items()}, evaluate_every=4,
    )  # fmt: skip
    kept = sum(float(jnp.sum(leaf == 7.0)) for leaf in jax.tree.leaves(found.ticket))
    assert kept == 0, "scores do not move at rate 0, so only pruned weights were drawn anew"
