import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from refusals import refusals

from slth_jax import edge_popup, gpt2, huggingface, ticket
from slth_jax.storage import CheckpointError

CONFIGS = {
    "relu": gpt2.Config(num_blocks=2, width=32, num_heads=4, vocab_size=61, max_length=19),
    "gelu": gpt2.Config(
        num_blocks=1, width=24, num_heads=3, vocab_size=50, max_length=12, activation="gelu"
    ),
    "one head, four blocks": gpt2.Config(
        num_blocks=4, width=16, num_heads=1, vocab_size=33, max_length=8, activation="gelu"
    ),
}
CONFIG = CONFIGS["relu"]


def key(seed=0):
    return jax.random.key(seed, impl="threefry2x32")


def random_params(config, seed=0):
    """Weights of a healthy size, with gains and biases that are not 1 and 0."""
    params = gpt2.init(key(seed), dataclasses.replace(config, init_sd=0.3))
    noise = jax.random.split(key(seed + 1), len(params))
    return {
        name: value + (0.1 * jax.random.normal(k, value.shape) if "." in name else 0.0)
        for k, (name, value) in zip(noise, sorted(params.items()), strict=True)
    }


def random_tokens(config, n=3):
    return jax.random.randint(key(7), (n, config.max_length), 0, config.vocab_size)


@pytest.fixture(scope="module")
def hugging_face():
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")

    def model(config):
        torch.manual_seed(0)
        fields = huggingface.to_config(config)
        theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**fields)).eval()
        with torch.no_grad():
            for parameter in theirs.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape))
        return theirs

    def logits(theirs, tokens):
        with torch.no_grad():
            return theirs(torch.tensor(np.array(tokens, np.int64))).logits.numpy()

    return model, logits


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_hugging_face(name, hugging_face):
    config = CONFIGS[name]
    model, logits = hugging_face
    theirs = model(config)
    state = {key: value.detach().numpy() for key, value in theirs.state_dict().items()}
    params = huggingface.from_state_dict(state, config)
    tokens = random_tokens(config)
    ours = gpt2.apply(params, tokens, config)
    np.testing.assert_allclose(ours, logits(theirs, tokens), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_state_dict_there_and_back(name):
    params = random_params(CONFIGS[name])
    back = huggingface.from_state_dict(
        huggingface.to_state_dict(params, CONFIGS[name]), CONFIGS[name]
    )
    chex.assert_trees_all_equal(params, back)


def test_a_ticket_saved_for_hugging_face_loads_there(hugging_face, tmp_path):
    transformers = pytest.importorskip("transformers")
    _, logits = hugging_face
    weights, trainable = gpt2.start(key(), CONFIG)
    masked = edge_popup.ticket(weights, trainable, 0.3, edge_popup.VARIANTS["ramanujan"])
    huggingface.save(tmp_path / "model", masked, CONFIG)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "model").eval()
    tokens = random_tokens(CONFIG)
    ours = gpt2.apply(masked, tokens, CONFIG)
    np.testing.assert_allclose(ours, logits(theirs, tokens), atol=1e-4, rtol=1e-4)
    loaded, config = huggingface.load(tmp_path / "model")
    assert config == CONFIG
    chex.assert_trees_all_equal(loaded, masked)


def test_hugging_face_refusals(tmp_path):
    params = random_params(CONFIG)
    state = huggingface.to_state_dict(params, CONFIG)
    with refusals(r"^state must be .* one that lacks 'wpe.weight'"):
        huggingface.from_state_dict(
            {k: v for k, v in state.items() if not k.endswith("wpe.weight")}, CONFIG
        )
    with refusals(r"^state must be .* also has 'extra'"):
        huggingface.from_state_dict({**state, "extra": state["transformer.wte.weight"]}, CONFIG)
    longer = dataclasses.replace(CONFIG, max_length=20)
    with pytest.raises(
        ValueError, match=r"^state\['wpe.weight'\] must be of shape \(20, 32\), got"
    ):
        huggingface.from_state_dict(state, longer)
    with refusals(r"^params must be complete"):
        huggingface.to_state_dict({"wte": params["wte"]}, CONFIG)
    fields = huggingface.to_config(CONFIG)
    for name, value in (
        ("model_type", "bert"),
        ("activation_function", "swish"),
        ("scale_attn_weights", False),
    ):
        with refusals(rf"^{name} must be"):
            huggingface.from_config({**fields, name: value})
    huggingface.save(tmp_path / "model", params, CONFIG)
    (tmp_path / "model" / "model.safetensors").write_bytes(b"short")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        huggingface.load(tmp_path / "model")


def test_initial_weights():
    config = gpt2.Config(num_blocks=3, width=128, num_heads=2, vocab_size=500, max_length=64)
    params = gpt2.init(key(), config, qk_scale=2.5)
    expected = {
        "h.attn.q": 0.05,
        "h.attn.k": 0.05,
        "h.attn.o": 0.02 / 6**0.5,
        "h.mlp.out": 0.02 / 6**0.5,
    }
    for name in gpt2.matrix_shapes(config):
        values = np.asarray(params[name], np.float64)
        sd = expected.get(name, 0.02)
        # The standard error of a normal's sd is sd / sqrt(2 n); of its mean sd / sqrt(n).
        assert abs(values.std() - sd) < 5 * sd / (2 * values.size) ** 0.5
        assert abs(values.mean()) < 5 * sd / values.size**0.5
    for name in gpt2.vector_shapes(config):
        assert np.all(np.asarray(params[name]) == (1 if name.endswith("gain") else 0))
    plain = gpt2.init(key(), config)
    np.testing.assert_array_equal(plain["h.attn.v"], params["h.attn.v"])
    np.testing.assert_allclose(plain["h.attn.q"] * 2.5, params["h.attn.q"], rtol=1e-6)


def test_presets():
    small = gpt2.preset("small", gains="learned", embeddings="learned")
    assert gpt2.num_parameters(small) == 124_439_808  # the published GPT-2 small
    assert gpt2.num_parameters(gpt2.preset("medium")) == 354_823_168
    for multiplier in (0.5, 1, 2):
        config = gpt2.preset("mini", width_multiplier=multiplier)
        assert (config.width, config.num_heads) == (512 * multiplier, 8 * multiplier)
        assert config.head_width == 64
    assert gpt2.paper_qk_scale(small) == pytest.approx(2.83, abs=0.01)
    with refusals(r"^width_multiplier must be a multiple of 1/2"):
        gpt2.preset("tiny", width_multiplier=0.75)
    with refusals(r"^model must be one of"):
        gpt2.preset("huge")
    with refusals(r"^width must be a multiple of num_heads = 3, got 32"):
        gpt2.Config(num_blocks=1, width=32, num_heads=3)


def test_logits_are_causal():
    tokens = random_tokens(CONFIG)
    params = random_params(CONFIG)
    changed = tokens.at[:, 9:].set((tokens[:, 9:] + 1) % CONFIG.vocab_size)
    before, after = (gpt2.apply(params, t, CONFIG) for t in (tokens, changed))
    np.testing.assert_allclose(before[:, :9], after[:, :9], atol=1e-5)
    assert float(jnp.max(jnp.abs(before[:, 9:] - after[:, 9:]))) > 1e-2


def test_loss_is_the_mean_cross_entropy():
    params, tokens = random_params(CONFIG), random_tokens(CONFIG)
    logits = np.asarray(gpt2.apply(params, tokens[:, :-1], CONFIG), np.float64)
    log_p = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
    picked = np.take_along_axis(log_p, np.asarray(tokens)[:, 1:, None], axis=-1)
    assert float(gpt2.loss(params, tokens, CONFIG)) == pytest.approx(-picked.mean(), rel=1e-5)


def test_remat_and_bfloat16():
    params, tokens = random_params(CONFIG), random_tokens(CONFIG)
    plain = jax.grad(gpt2.loss)(params, tokens, CONFIG)
    again = jax.grad(lambda p: gpt2.loss(p, tokens, CONFIG, remat=True))(params)
    chex.assert_trees_all_close(plain, again, rtol=1e-4, atol=1e-6)
    low = gpt2.apply(params, tokens, CONFIG, dtype=jnp.bfloat16)
    assert low.dtype == jnp.float32
    high = gpt2.apply(params, tokens, CONFIG)
    # bfloat16 has 8 bits of mantissa; logits here have a standard deviation of about 2.
    assert float(jnp.sqrt(jnp.mean((low - high) ** 2))) < 0.03 * float(jnp.std(high))


def test_flax_module_is_the_pure_functions():
    variant = edge_popup.VARIANTS["ramanujan"]
    model = gpt2.GPT2(key(), CONFIG, qk_scale=2.0)
    weights, trainable = gpt2.start(key(), CONFIG, qk_scale=2.0)
    tokens = random_tokens(CONFIG)
    masked = edge_popup.ticket(weights, trainable, 0.3, variant)
    np.testing.assert_array_equal(model(tokens), gpt2.apply(masked, tokens, CONFIG))

    graphdef, scores, frozen = nnx.split(model, gpt2.Score, gpt2.Frozen)

    @jax.jit
    def gradient(scores, tokens, keep):
        return jax.grad(lambda s: nnx.merge(graphdef, s, frozen).loss(tokens, keep))(scores)

    moved = gradient(scores, tokens, 0.3)
    expected = jax.grad(
        lambda t: gpt2.loss(edge_popup.ticket(weights, t, 0.3, variant), tokens, CONFIG)
    )(trainable)
    assert len(jax.tree.leaves(moved)) == len(gpt2.masked_names(CONFIG))
    for name, value in nnx.merge(graphdef, moved, frozen).scores.items():
        np.testing.assert_allclose(value[...], expected.scores[name], atol=1e-6)


def test_what_learns_is_a_setting():
    config = dataclasses.replace(CONFIG, embeddings="learned", gains="learned")
    weights, trainable = gpt2.start(key(), config)
    assert set(trainable.learned) == {"wte", "wpe", *gpt2.vector_shapes(config)}
    assert set(weights) == set(trainable.scores) == set(gpt2.masked_names(config))
    every = {**weights, **trainable.learned}
    chex.assert_trees_all_equal(every, gpt2.init(key(), config))


def test_a_run_is_a_ticket_of_its_key():
    """The source is drawn by one program, so a ticket's recipe gives the run's own bits."""
    weights, trainable = gpt2.start(key(5), CONFIG, qk_scale=2.83)
    kept = edge_popup.masks(trainable.scores, 0.3, edge_popup.VARIANTS["ramanujan"])
    options = {"qk_scale": 2.83, **dataclasses.asdict(CONFIG)}
    found = ticket.create("gpt2", options, 5, kept, weights=weights)
    masked = ticket.materialize(found)
    expected = edge_popup.ticket(weights, trainable, 0.3, edge_popup.VARIANTS["ramanujan"])
    chex.assert_trees_all_equal(masked, expected)


def test_bad_tokens():
    params = gpt2.init(key(), CONFIG)
    with refusals(r"^tokens must be at most max_length = 19 long, got 20"):
        gpt2.apply(params, jnp.zeros((1, 20), int), CONFIG)
    with refusals(r"^tokens must be in \[0, 60\] for this vocabulary, got"):
        gpt2.apply(params, jnp.full((1, 3), 61), CONFIG)
    with refusals(r"^tokens must be an integer array"):
        gpt2.apply(params, jnp.zeros((1, 3)), CONFIG)
