"""A mesh of explicit axes, JAX's default, around a call or under its arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding

from slth_jax import attention, construction, edge_popup, initializers, subset_sum, supermask

KEY = jax.random.key(0, impl="threefry2x32")
SAMPLES = np.random.default_rng(0).normal(size=(8, 10)).astype(np.float32)
VALUES = SAMPLES[:, ::2].sum(axis=1)
SHAPE = {"num_heads": 1, "d_in": 4, "d_out": 4}
SOURCE = initializers.theory_attention(KEY, n_k=24, n_v=24, **SHAPE)
TARGET = initializers.theory_attention(jax.random.fold_in(KEY, 1), n_k=4, n_v=4, **SHAPE)


def fit(weights):
    training = edge_popup.Training(steps=4, optimizer=optax.sgd(0.1), evaluate_every=2)

    def loss(params, x):
        return jnp.mean((x @ params["w"] - 1.0) ** 2)

    def batches(step):
        return jax.random.normal(jax.random.fold_in(KEY, step), (8, 8))

    [result] = edge_popup.fit(KEY, {"w": weights}, loss, batches, training=training)
    return result.masks


CALLS = {
    "solve": (lambda x: subset_sum.solve(x, VALUES).mask, SAMPLES),
    "prune_attention": (
        lambda w: construction.prune_attention(
            SOURCE._replace(w_q=w), TARGET, construction="proof"
        ),
        SOURCE.w_q[:, :, :],
    ),
    "from_scores": (lambda scores: supermask.from_scores(scores, 0.5), SAMPLES),
    "apply": (lambda x: attention.apply(TARGET, x), jnp.asarray(SAMPLES[:, :4])),
    "apply rows": (
        lambda x: attention.apply(TARGET, x.T, attention.causal_mask(8)),
        jnp.asarray(SAMPLES[:, :4].T),
    ),
    "cross-attention": (
        lambda x: attention.apply(TARGET, SAMPLES[:, :4], memory=(x.T, x.T)),
        jnp.asarray(SAMPLES[:, :4].T),
    ),
    "merged rows": (
        lambda x: attention.apply_merged(attention.merge(TARGET), x.T, queries=jnp.array([1, 5])),
        jnp.asarray(SAMPLES[:, :4].T),
    ),
    "error": (lambda x: attention.error(SOURCE, TARGET, x.T), jnp.asarray(SAMPLES[:, :4].T)),
    "fit": (fit, jnp.asarray(SAMPLES[:, :8])),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_mesh_of_the_context_changes_no_bit(name):
    call, argument = CALLS[name]
    expected = jax.tree.map(np.asarray, call(argument))
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        around = jax.tree.map(np.asarray, call(argument))
    jax.tree.map(np.testing.assert_array_equal, around, expected)


@pytest.mark.parametrize("name", CALLS)
def test_arguments_on_an_explicit_mesh(name):
    call, argument = CALLS[name]
    expected = jax.tree.map(np.asarray, call(argument))
    mesh = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Explicit,), devices=jax.devices()[:4])
    spec = jax.P(*([None] * (argument.ndim - 2)), "x")
    placed = jax.device_put(argument, NamedSharding(mesh, spec))
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, call(placed)), expected)
