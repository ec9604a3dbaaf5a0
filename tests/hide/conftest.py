"""Small models of the architectures that can be hidden, as Hugging Face and others store them."""

import json

import numpy as np
import pytest

LENGTH, VOCABULARY = 16, 23


def scattered(model, seed=0):
    """Make every parameter matter: gains, shifts and biases too."""
    import torch  # takes seconds, and most workers need neither it nor transformers

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.fixture
def scatter():
    """Return `scattered`."""
    return scattered


def llama():
    """Grouped queries, heads of another width than d / h, biases, an output layer of its own."""
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=8, intermediate_size=10, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=4, attention_bias=True,
        mlp_bias=True, max_position_embeddings=LENGTH, tie_word_embeddings=False,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return scattered(transformers.LlamaForCausalLM(config))


def gpt2():
    """LayerNorm, learned positions, biases everywhere, tied embedding."""
    import transformers

    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=8, n_layer=2, n_head=2, n_positions=LENGTH,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return scattered(transformers.GPT2LMHeadModel(config), seed=1)


def plain_llama():
    """No biases, so no constant coordinate; tied."""
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=8, intermediate_size=6, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=LENGTH,
        tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return scattered(transformers.LlamaForCausalLM(config), seed=2)


def bert():
    """An encoder: norms behind the sums, token types, a norm behind the embeddings."""
    import transformers

    config = transformers.BertConfig(
        vocab_size=VOCABULARY, hidden_size=8, intermediate_size=10, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=LENGTH,
    )  # fmt: skip
    return scattered(transformers.BertModel(config), seed=4)


def classifier(path):
    """Write a bidirectional classifier with padding, LayerNorm and biases, as TransformerLens."""
    rng = np.random.default_rng(3)
    h, d, k, f = 2, 8, 4, 8
    shapes = {
        "embed.W_E": (5, d), "pos_embed.W_pos": (LENGTH, d), "unembed.W_U": (d, 2),
        "unembed.b_U": (2,), "ln_final.w": (d,), "ln_final.b": (d,),
    }  # fmt: skip
    block = {
        "ln1.w": (d,), "ln1.b": (d,), "ln2.w": (d,), "ln2.b": (d,),
        "attn.W_Q": (h, d, k), "attn.W_K": (h, d, k), "attn.W_V": (h, d, k), "attn.W_O": (h, k, d),
        "attn.b_Q": (h, k), "attn.b_K": (h, k), "attn.b_V": (h, k), "attn.b_O": (d,),
        "mlp.W_in": (d, f), "mlp.b_in": (f,), "mlp.W_out": (f, d), "mlp.b_out": (d,),
    }  # fmt: skip
    shapes |= {f"blocks.0.{name}": shape for name, shape in block.items()}
    np.savez(path, **{n: rng.normal(0, 0.5, s).astype(np.float32) for n, s in shapes.items()})
    config = {
        "n_layers": 1, "d_model": d, "n_ctx": LENGTH, "d_head": k, "n_heads": h, "d_mlp": f,
        "act_fn": "relu", "d_vocab": 5, "d_vocab_out": 2, "attention_dir": "bidirectional",
        "pad_token": 1,
    }  # fmt: skip
    path.with_suffix(".json").write_text(json.dumps(config))


@pytest.fixture(scope="session")
def models_on_disk(tmp_path_factory):
    """Return {name: (path, logits of the reference for `tokens`, or None)}."""
    import torch

    root = tmp_path_factory.mktemp("models")
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (3, LENGTH))
    models = {}
    for make in (llama, gpt2, plain_llama, bert):
        model = make()
        model.save_pretrained(root / make.__name__)
        with torch.no_grad():
            logits = model(torch.tensor(tokens))[0].numpy()  # the states of an encoder
        models[make.__name__] = (root / make.__name__, tokens, logits)
    classifier(root / "classifier.npz")
    brackets = np.random.default_rng(1).integers(0, 5, (3, LENGTH))
    models["classifier"] = (root / "classifier.npz", brackets, None)
    return models
