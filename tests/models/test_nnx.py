"""The Flax face of the family is the pure functions around parameters that Flax keeps."""

import jax
import numpy as np
from flax import nnx

from slth_jax import models
from slth_jax.models.nnx import Decoder

SETTINGS = models.make_settings(
    vocab_size=24, width=16, num_blocks=2, num_heads=2, max_length=8, activation="relu"
)


def test_logits_loss_and_gradients_are_those_of_the_functions():
    key = jax.random.key(1, impl="threefry2x32")
    params = models.initialise(key, SETTINGS, models.Initial(sd=0.2))
    tokens = jax.random.randint(key, (3, 8), 0, 24)
    model = Decoder(params, SETTINGS)
    np.testing.assert_array_equal(model(tokens), models.apply(params, tokens, SETTINGS))
    graph, state = nnx.split(model, nnx.Param)
    gradient = jax.grad(lambda state: nnx.merge(graph, state).loss(tokens))(state)
    expected = jax.grad(models.loss)(params, tokens, SETTINGS)
    assert gradient["params"].keys() == expected.keys()
    for name, value in gradient["params"].items():
        np.testing.assert_allclose(value[...], expected[name], atol=1e-6)
