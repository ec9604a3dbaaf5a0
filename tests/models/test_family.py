"""The family of models against transformers, NumPy and itself."""

import os
import struct
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import refusals

from slth_jax import models, storage
from slth_jax.models import decoder, make_settings, rotary_frequencies

DATA = Path(os.environ.get("SLTH_DATA", Path(__file__).parents[3] / "shared" / "data"))
STORIES = DATA / "pretrained" / "stories260K.bin"
KEY = jax.random.key(5, impl="threefry2x32")

CONFIGS = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", {
        "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 3,
        "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 10, "attention_bias": True,
        "max_position_embeddings": 32, "tie_word_embeddings": False, "rope_theta": 500.0,
    }),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {
        "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 32,
        "tie_word_embeddings": True,
    }),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", {
        "n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 32, "n_inner": 20,
    }),
    "gpt2-relu": ("GPT2Config", "GPT2LMHeadModel", {
        "n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 32, "activation_function": "relu",
    }),
}  # fmt: skip


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request, tmp_path_factory):
    """Return a folder that transformers wrote, tokens, and its logits of them."""
    import torch  # takes seconds, and most workers need neither
    import transformers

    *names, fields = CONFIGS[request.param]
    config, model = (getattr(transformers, name) for name in names)
    net = model(config(vocab_size=37, bos_token_id=0, eos_token_id=0, **fields)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        tokens = np.random.default_rng(0).integers(0, 37, (2, 19))
        logits = net(torch.tensor(tokens)).logits.numpy()
    folder = tmp_path_factory.mktemp(request.param)
    net.save_pretrained(folder)
    return folder, tokens, logits


def test_logits_are_those_of_transformers(pair):
    folder, tokens, logits_of_transformers = pair
    reader = models.weights.open(folder)
    params = reader.load()
    np.testing.assert_allclose(
        models.apply(params, tokens, reader.settings), logits_of_transformers, atol=1e-4
    )
    shapes = jax.tree.map(jnp.shape, params)
    assert reader.num_bytes == 4 * sum(int(np.prod(shape)) for shape in shapes.values())


def test_a_cache_gives_the_logits_of_the_whole(pair):
    folder, tokens, _ = pair
    reader = models.weights.open(folder)
    params = reader.load()
    whole = models.apply(params, tokens, reader.settings)
    cache = models.init_cache(reader.settings, 2, 19)
    first, cache = models.extend(params, cache, tokens[:, :12], reader.settings)
    rest = []
    for i in range(12, 19):
        logits, cache = models.extend(params, cache, tokens[:, i : i + 1], reader.settings)
        rest.append(logits)
    together = jnp.concatenate([first, *rest], axis=1)
    np.testing.assert_allclose(together, whole, atol=2e-5)


def test_what_is_written_is_read_again(pair, tmp_path):
    folder, tokens, logits_of_transformers = pair
    reader = models.weights.open(folder)
    models.weights.save(tmp_path / "again", reader.load(), reader.settings)
    again = models.weights.open(tmp_path / "again")
    logits = models.apply(again.load(), tokens, again.settings)
    np.testing.assert_allclose(logits, logits_of_transformers, atol=1e-4)


def settings(**changes):
    values = {
        "vocab_size": 11, "width": 6, "num_blocks": 2, "num_heads": 2, "num_kv_heads": 1,
        "head_width": 4, "hidden_width": 5, "max_length": 9, "tied": False, **changes,
    }  # fmt: skip
    return make_settings(**values)


def drawn(shape, biases=()):
    return models.initialise(KEY, shape, models.Initial(sd=0.5, biases=biases))


def test_a_product_of_two_matrices_stands_for_a_matrix():
    shape, tokens = settings(), np.arange(8)[None]
    params = drawn(shape)
    factored = dict(params)
    for name in ("wte", "wpe", "h.mlp.in", "h.mlp.out", "unembed"):
        w = np.asarray(factored.pop(name), np.float64)
        u, s, v = np.linalg.svd(w, full_matrices=False)
        factored[f"{name}.first"] = jnp.asarray(u * s[..., None, :], jnp.float32)
        factored[f"{name}.second"] = jnp.asarray(v, jnp.float32)
    want = models.apply(params, tokens, shape)
    np.testing.assert_allclose(models.apply(factored, tokens, shape), want, atol=1e-5)
    relu = settings(factor="relu")
    assert abs(models.apply(factored, tokens, relu) - want).max() > 1e-2


def test_padding_is_attended_by_nobody():
    shape = settings(causal=False, pad_token=1)
    params = drawn(shape)
    long = models.apply(params, np.array([[3, 4, 5, 1, 1]]), shape)
    short = models.apply(params, np.array([[3, 4, 5]]), shape)
    np.testing.assert_allclose(long[:, :3], short, atol=1e-6)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_contract_of_apply(name):
    rotary = {"positions": "rotary", "norm": "rms", "gated": True, "activation": "silu"}
    shape = settings(**(rotary if name == "llama" else {}))
    params, tokens = drawn(shape), np.arange(10).reshape(2, 5)
    eager = models.apply(params, tokens, shape)
    assert eager.shape == (2, 5, 11) and eager.dtype == jnp.float32
    traces = []

    @jax.jit
    def jitted(params, tokens):
        traces.append(1)
        return models.apply(params, tokens, shape)

    np.testing.assert_allclose(jitted(params, tokens), eager, atol=1e-6)
    jitted(params, tokens[::-1])
    assert len(traces) == 1
    lifted = jax.vmap(lambda p: models.apply(p, tokens, shape))(
        jax.tree.map(lambda w: jnp.stack([w, 2 * w]), params)
    )
    np.testing.assert_allclose(lifted[0], eager, atol=1e-5)
    by_hand = decoder.embed(params, jnp.asarray(tokens), shape)
    for b in range(shape.num_blocks):
        block = {n[2:]: w[b] for n, w in params.items() if n.startswith("h.")}
        by_hand = decoder.block(block, by_hand, shape)
    np.testing.assert_allclose(decoder.unembed(params, by_hand, shape), eager, atol=1e-6)


def test_bad_settings_and_tokens_are_named():
    with refusals("num_kv_heads must be a divisor of num_heads = 2, got 3"):
        settings(num_kv_heads=3)
    with refusals("norm must be one of 'layer', 'rms', 'none'"):
        settings(norm="batch")
    shape = settings()
    with refusals(r"tokens must be in \[0, 10\]"):
        models.apply(drawn(shape), np.array([[11]]), shape)
    with refusals("causal"):
        models.init_cache(settings(causal=False), 1, 4)
    assert rotary_frequencies(4) == (1.0, 0.01)


def test_generating_takes_the_likeliest_or_the_luckiest():
    shape = settings(max_length=9)
    params = drawn(shape)
    generated = models.generate(params, shape, [2, 3], 5)
    assert generated[:2] == [2, 3] and len(generated) == 7
    logits = models.apply(params, np.asarray([generated]), shape)[0]
    assert generated[2:] == list(np.asarray(logits.argmax(-1))[1:-1])
    assert len(models.generate(params, shape, [2, 3], 50)) == 9, "the context ends"
    warm = [models.generate(params, shape, [2], 6, temperature=2.0, key=KEY) for _ in range(2)]
    assert warm[0] == warm[1]
    stopped = models.generate(params, shape, [2, 3], 5, stop={generated[4]})
    assert stopped == generated[: generated.index(generated[4], 2)]
    with refusals("key must be given"):
        models.generate(params, shape, [2], 1, temperature=1.0)
    with refusals("prompt must be at least one token"):
        models.generate(params, shape, [], 1)


def test_llama2c_files_and_tokenizers(tmp_path):
    pieces = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % i for i in range(256))]
    pieces += [b" ", b"a", b"b", b"ab", b" ab", b"abab"]
    with open(tmp_path / "tok.bin", "wb") as file:
        file.write(struct.pack("i", 6))
        for i, piece in enumerate(pieces):
            file.write(struct.pack("fi", float(i), len(piece)) + piece)
    tokenizer = models.tokens.load(tmp_path / "tok.bin")
    for text in ("abab", "ab é\n", "b a"):
        tokens = tokenizer.encode(text)
        assert tokens[0] == 1 and tokenizer.decode(tokens) == text
    assert tokenizer.encode("abab") == [1, 263, 262], "the best-scored merge comes first"
    (tmp_path / "cut.bin").write_bytes((tmp_path / "tok.bin").read_bytes()[:-2])
    with pytest.raises(storage.Damaged, match=r"no llama2\.c tokenizer"):
        models.tokens.load(tmp_path / "cut.bin")
    with pytest.raises(storage.CheckpointError, match="No such file"):
        models.weights.open(tmp_path / "none.bin")
    with refusals("model must be a Hugging Face folder"):
        models.weights.open(__file__)


@pytest.mark.skipif(not STORIES.exists(), reason=f"{STORIES} is not here")
def test_the_story_model_tells_its_story():
    reader = models.weights.open(STORIES)
    tokenizer = models.tokens.load(STORIES.with_name("tok512.bin"))
    tokens = models.generate(reader.load(), reader.settings, tokenizer.encode(""), 50)
    story = "Once upon a time, there was a little girl named Lily. She loved to play outside in "
    assert tokenizer.decode(tokens).startswith(story + "the park.")
