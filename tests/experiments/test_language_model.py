"""GPT-2 of the language experiments: its draw, the parts that train, its tickets."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import refusals

from experiments.language.model import Model
from experiments.language.settings import GPT2, Settings
from slth_jax import edge_popup, models, ticket

SETTINGS = models.make_settings(
    num_blocks=2, width=32, num_heads=4, vocab_size=61, max_length=19, activation="relu"
)
MODEL = Model(SETTINGS)
RAMANUJAN = edge_popup.Variant(scope="matrix")


def key(seed=0):
    return jax.random.key(seed, impl="threefry2x32")


@pytest.mark.slow
def test_initial_weights():
    settings = dataclasses.replace(
        SETTINGS, num_blocks=3, vocab_size=500, outputs=500, max_length=64
    )
    model = Model(settings)
    params = model.init(key(), 2.5)
    expected = {
        "h.attn.q": 0.05,
        "h.attn.k": 0.05,
        "h.attn.o": 0.02 / 6**0.5,
        "h.mlp.out": 0.02 / 6**0.5,
    }
    for name in model.shapes:
        values = np.asarray(params[name], np.float64)
        sd = expected.get(name, 0.02)
        # The standard error of a normal's sd is sd / sqrt(2 n); of its mean sd / sqrt(n).
        assert abs(values.std() - sd) < 5 * sd / (2 * values.size) ** 0.5
        assert abs(values.mean()) < 5 * sd / values.size**0.5
    for name in params.keys() - model.shapes.keys():
        assert np.all(np.asarray(params[name]) == (1 if name.endswith("gain") else 0))
    plain = model.init(key())
    np.testing.assert_array_equal(plain["h.attn.v"], params["h.attn.v"])
    np.testing.assert_allclose(plain["h.attn.q"] * 2.5, params["h.attn.q"], rtol=1e-6)


def test_presets():
    assert GPT2 == ("nano", "tiny", "mini", "small", "medium")
    small = Model(*models.preset("small"), "learned", "learned")
    assert small.num_parameters == 124_439_808  # the published GPT-2 small
    assert Model(*models.preset("medium")).num_parameters == 354_823_168
    for multiplier in (0.5, 1, 2):
        shape, _ = models.preset("mini", width_multiplier=multiplier)
        assert (shape.width, shape.num_heads) == (512 * multiplier, 8 * multiplier)
        assert shape.head_width == 64
    assert small.paper_qk_scale == pytest.approx(2.83, abs=0.01)
    with refusals(r"^model must be one of 'nano', .*, got 'stories260K'"):
        Settings().job("stories260K")
    with refusals(r"^gains must be one of 'fixed', 'learned', got"):
        Model(SETTINGS, gains="free")


@pytest.mark.slow
def test_parts_that_learn_are_a_setting():
    model = dataclasses.replace(MODEL, embeddings="learned", gains="learned")
    weights, trainable = model.start(key(), RAMANUJAN)
    drawn = model.init(key())
    assert set(trainable.learned) == {"wte", "wpe", *(drawn.keys() - model.shapes.keys())}
    assert set(weights) == set(trainable.scores) == set(model.masked)
    chex.assert_trees_all_equal({**weights, **trainable.learned}, drawn)


@pytest.mark.slow
def test_a_run_is_a_ticket_of_its_key_and_loads_as_a_published_model(tmp_path):
    """The source is drawn by one program, so a ticket's recipe gives the run's own bits."""
    weights, trainable = MODEL.start(key(5), RAMANUJAN, 2.83)
    masks = edge_popup.masks(None, trainable.scores, weights, 0.3, RAMANUJAN)
    options = {"qk_scale": 2.83, **MODEL.options()}
    saved = ticket.create("gpt2", options, 5, masks, weights=weights)
    masked = ticket.materialize(saved)
    expected = edge_popup.ticket(None, weights, trainable, 0.3, RAMANUJAN)
    chex.assert_trees_all_equal(masked, expected)
    transformers, torch = (pytest.importorskip(name) for name in ("transformers", "torch"))
    models.weights.save(tmp_path / "model", masked, SETTINGS)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "model").eval()
    tokens = jax.random.randint(key(7), (3, 19), 0, 61)
    with torch.no_grad():
        logits = theirs(torch.tensor(np.array(tokens, np.int64))).logits.numpy()
    ours = models.apply(masked, tokens, SETTINGS)
    np.testing.assert_allclose(ours, logits, atol=1e-4, rtol=1e-4)
    assert jnp.all(jnp.isfinite(ours))


@pytest.mark.slow
def test_loss_recomputed_blocks_and_bfloat16():
    params = MODEL.init(key(), 1.0)
    params = {name: 5 * value if value.ndim > 1 else value for name, value in params.items()}
    tokens = jax.random.randint(key(7), (3, 19), 0, 61)
    logits = np.asarray(models.apply(params, tokens[:, :-1], SETTINGS), np.float64)
    log_p = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
    chosen = np.take_along_axis(log_p, np.asarray(tokens)[:, 1:, None], axis=-1)
    plain, gradient = jax.value_and_grad(models.loss)(params, tokens, SETTINGS)
    assert float(plain) == pytest.approx(-chosen.mean(), rel=1e-5)
    again = jax.grad(lambda p: models.loss(p, tokens, SETTINGS, remat=True))(params)
    chex.assert_trees_all_close(gradient, again, rtol=1e-4, atol=1e-6)
    low = models.apply(params, tokens[:, :-1], SETTINGS, dtype=jnp.bfloat16)
    assert low.dtype == jnp.float32
    # bfloat16 has 8 bits of mantissa. Larger query and key weights amplify its round-off.
    assert float(jnp.sqrt(jnp.mean((low - logits) ** 2))) < 0.03 * logits.std()
