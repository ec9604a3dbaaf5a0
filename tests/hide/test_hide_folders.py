"""Random folders of transformers, hidden: the target is theirs, and the ticket is close to it."""

import json

import numpy as np
import pytest
import safetensors.torch
from cells import cells

from slth_jax import hide, models

VOCABULARY = 31
LLAMA = {
    "vocab_size": VOCABULARY, "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32,
    "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8,
}  # fmt: skip
# By name: model type, configuration, changes of config.json afterwards, and the files' layout.
FOLDERS = {
    "llama-tied": ("llama", LLAMA | {"tie_word_embeddings": True}, {}, "whole"),
    "llama-wide-heads": ("llama", LLAMA | {"head_dim": 10, "attention_bias": True}, {}, "whole"),
    "llama-one-kv-head": ("llama", LLAMA | {"num_key_value_heads": 1}, {}, "bf16 shards"),
    "llama-rope-4": ("llama", LLAMA, {"rope_parameters": ..., "rope_scaling": LLAMA3}, "whole"),
    "llama-rope-5": (
        "llama", LLAMA, {"rope_parameters": LLAMA3 | {"rope_theta": 500.0}}, "whole",
    ),
    "mistral": ("mistral", LLAMA, {}, "whole"),
    "qwen2": ("qwen2", LLAMA | {"tie_word_embeddings": True}, {}, "whole"),
    "gpt2": (
        "gpt2",
        {"vocab_size": VOCABULARY, "n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 32,
         "bos_token_id": 0, "eos_token_id": 0},
        {}, "no prefix",
    ),
    "bert": (
        "bert",
        {"vocab_size": VOCABULARY, "hidden_size": 24, "num_hidden_layers": 2,
         "num_attention_heads": 3, "intermediate_size": 20, "max_position_embeddings": 32},
        {}, "bf16 shards",
    ),
    "roberta": (
        "roberta",
        {"vocab_size": VOCABULARY, "hidden_size": 24, "num_hidden_layers": 2, "pad_token_id": 0,
         "num_attention_heads": 3, "intermediate_size": 20, "max_position_embeddings": 33,
         "type_vocab_size": 1},
        {}, "whole",
    ),
}  # fmt: skip


def written(folder, scatter, kind, config, changes, layout):
    """Write the folder; return the function of `transformers` from tokens to logits."""
    import torch
    import transformers

    encoder = kind in ("bert", "roberta")
    make = transformers.AutoModel if encoder else transformers.AutoModelForCausalLM
    net = scatter(make.from_config(transformers.AutoConfig.for_model(kind, **config)), seed=9)
    if layout == "bf16 shards":
        net.to(torch.bfloat16).save_pretrained(folder, max_shard_size="9KB")
        assert len(list(folder.glob("*.safetensors"))) > 1
    else:
        net.save_pretrained(folder)
    if layout == "no prefix":
        path = folder / "model.safetensors"
        state = safetensors.torch.load_file(path)
        state = {name.removeprefix("transformer."): value for name, value in state.items()}
        safetensors.torch.save_file(state, path, metadata={"format": "pt"})
    path = folder / "config.json"
    fields = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: x for name, x in fields.items() if x is not ...}))
    net = make.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    return lambda tokens: net(torch.tensor(tokens))[0].detach().numpy()


@pytest.mark.parametrize("name", cells(FOLDERS, fast=()))
def test_a_folder_and_its_ticket(name, tmp_path, scatter):
    reference = written(tmp_path / "folder", scatter, *FOLDERS[name])
    tokens = np.random.default_rng(1).integers(1, VOCABULARY, (3, 24))  # 0 is the padding
    expected = reference(tokens)
    reader = models.weights.open(tmp_path / "folder")
    target = hide.logits(hide.of_target(reader), tokens)
    np.testing.assert_allclose(target, expected, atol=1e-3)
    spec = hide.make_spec(reader, samples=16, construction="shift")
    ticket = hide.of_ticket(hide.solve(reader, spec, tmp_path / "run"))
    measured = hide.measures(target, hide.logits(ticket, tokens), None)
    assert measured["mean_logit_difference"] < 0.05 * measured["logit_sd"]


def test_the_identity_of_a_model_depends_on_its_weights(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    identities = {hide.identity_of(folder)}
    for name in ("pytorch_model.bin", "model.safetensors"):
        for content in (b"1", b"2"):
            (folder / name).write_bytes(name.encode() + content)
            identities.add(hide.identity_of(folder))
    assert len(identities) == 5
    (folder / "pytorch_model.bin").write_bytes(b"3")  # not read if there is a safetensors file
    assert hide.identity_of(folder) in identities
    (tmp_path / "model.npz").write_bytes(b"1")
    identities = {hide.identity_of(tmp_path / "model.npz")}
    for content in ("{}", "[]"):
        (tmp_path / "model.json").write_text(content)
        identities.add(hide.identity_of(tmp_path / "model.npz"))
    assert len(identities) == 3
