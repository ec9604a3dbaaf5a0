"""Folders of Hugging Face: read as transformers reads them, or refused by name."""

import json
import os
import random
import shutil

import jax
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from refusals import refusals

from slth_jax import models, storage

VOCABULARY, LENGTH = 29, 11
TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, (2, LENGTH))
DRAWS = int(os.environ.get("SLTH_CONFIG_DRAWS", 6))

# For each model type: the smallest configuration, and for each key values that are read and
# values that change the function in a way that this library does not compute.
ROPE = {
    "rope_theta": ([10000.0, 300.0, 5e5], [None, "big", 0, -3.0, [1]]),
    "rope_scaling": (
        [
            None,
            {"type": "linear", "factor": 3.0},
            {"rope_type": "default", "rope_theta": 77.0},
            {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0,
             "high_freq_factor": 4.0, "original_max_position_embeddings": 8},
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8},
            {"rope_type": "yarn", "factor": 2.0, "attention_factor": 1.3, "beta_fast": 8,
             "beta_slow": 2, "original_max_position_embeddings": 16},
            {"rope_type": "yarn", "factor": 8.0, "mscale": 0.7, "mscale_all_dim": 1.1,
             "truncate": False, "original_max_position_embeddings": 8},
        ],
        ["linear", {"type": "dynamic", "factor": 2.0}, {"type": "linear", "factor": 0},
         {"type": "linear", "factor": 2.0, "extra": 1}],
    ),
    "rope_parameters": (
        [{"rope_type": "default", "rope_theta": 123.0},
         {"rope_type": "linear", "factor": 2.0, "rope_theta": 999.0}],
        [{"rope_type": "default", "rope_theta": 9.0, "partial_rotary_factor": 0.5}],
    ),
}  # fmt: skip
COMMON = {
    "hidden_act": (["silu", "swish", "relu", "gelu", "gelu_new", "gelu_fast", "gelu_python",
                    "gelu_pytorch_tanh"], ["quick_gelu", "gelu_10", 3]),
    "rms_norm_eps": ([1e-6, 0.03], [None, "small"]),
    "num_key_value_heads": ([2, 4, None], [0]),
    "is_causal": ([True], [False]),
    "quantization_config": ([None], [{"quant_method": "fp8"}]),
    "attention_dropout": ([0.0, 0.3], []),
    "use_cache": ([True, False], []),
    "attn_logit_softcapping": ([], [5.0]),
    "tie_word_embeddings": ([True, False], ["yes"]),
}  # fmt: skip
LLAMA = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 24,
}  # fmt: skip
KINDS = {
    "llama": (LLAMA, ROPE | COMMON | {
        "attention_bias": ([True, False], [1]),
        "mlp_bias": ([True, False], []),
        "head_dim": ([None, 6], []),
        "pretraining_tp": ([1, 2], []),
        "rope_interleaved": ([False], [True]),
    }),
    "mistral": (LLAMA | {"sliding_window": 4096}, ROPE | COMMON | {
        "num_key_value_heads": ([2, 4], [0]),
        "sliding_window": ([None, 4096, LENGTH], []),
        "head_dim": ([None, 6], []),
    }),
    "qwen2": (LLAMA, ROPE | COMMON | {
        "use_sliding_window": ([True, False], []),
        "sliding_window": ([LENGTH, 4096], []),
        "max_window_layers": ([0, 1, 2, 28], []),
        "layer_types": ([None, ["full_attention"] * 2], [["full_attention"], ["other"] * 2]),
    }),
    "gpt2": ({
        "vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 24,
    }, {
        "activation_function": COMMON["hidden_act"],
        "n_inner": ([None, 20], []),
        "layer_norm_epsilon": ([1e-5, 0.02], [None]),
        "scale_attn_weights": ([True, False], [1]),
        "scale_attn_by_inverse_layer_idx": ([True, False], []),
        "reorder_and_upcast_attn": ([True, False], []),
        "is_causal": ([True], [False]),
        "tie_word_embeddings": ([True, False], []),
        "add_cross_attention": ([False], [True]),
        "summary_type": (["cls_index", "mean"], []),
        "mystery": ([], [1]),
    }),
}  # fmt: skip


def written(folder, kind, config, seed=0):
    """Write a folder of random weights; every parameter matters, biases and gains too."""
    net = transformers.AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    net.save_pretrained(folder)
    return folder


def edited(folder, **changes):
    """Write changes into config.json; `None` values are written, absent ones with `...`."""
    path = folder / "config.json"
    fields = {k: v for k, v in (json.loads(path.read_text()) | changes).items() if v is not ...}
    path.write_text(json.dumps(fields))
    return folder


def reference(folder, tokens=TOKENS):
    """Return the logits of transformers, which reads the folder."""
    net = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        return net.eval()(torch.tensor(tokens)).logits.numpy()


def logits(folder, tokens=TOKENS):
    reader = models.weights.open(folder)
    reader.check_entries()
    return np.asarray(models.apply(reader.load(), tokens, reader.settings))


def agree(folder):
    np.testing.assert_allclose(logits(folder), reference(folder), atol=2e-4)


def draw(kind, number):
    """Return random changes of a configuration, and which of them are not supported."""
    rng = random.Random(f"{kind} {number}")
    base, table = KINDS[kind]
    changes, refused = {}, []
    for key in rng.sample(sorted(table), k=min(len(table), 6)):
        supported, others = table[key]
        if others and (not supported or (number % 2 and rng.random() < 0.3)):
            changes[key] = rng.choice(others)
            refused.append(key)
        elif supported:
            changes[key] = rng.choice(supported)
    if changes.get("rope_scaling"):
        changes.pop("rope_parameters", None)  # transformers 4 and 5 have one each
    if any("rope_theta" in (changes.get(key) or ()) for key in ("rope_scaling", "rope_parameters")):
        changes.pop("rope_theta", None)  # the other base is in use
    refused = [key for key in refused if key in changes]
    if not number % 2:  # half of the draws have supported values only
        changes = {key: value for key, value in changes.items() if key not in refused}
        refused = []
    return base, changes, refused


@pytest.mark.parametrize("number", range(DRAWS))
@pytest.mark.parametrize("kind", KINDS)
def test_random_configurations_are_read_as_transformers_reads_them_or_refused(
    kind, number, tmp_path
):
    base, changes, refused = draw(kind, number)
    # The class is built with the changes that transformers supports; the file gets all.
    build = {k: v for k, v in changes.items() if k not in refused and not k.startswith("rope_")}
    config = transformers.AutoConfig.for_model(kind, **(base | build))
    folder = written(tmp_path, kind, config)
    edited(folder, rope_parameters=..., **({} if kind == "gpt2" else {"layer_types": ...}))
    edited(folder, **changes)
    if refused:
        with refusals("must be") as caught:
            models.weights.open(folder)
        assert len(str(caught.value)) < 400
    else:
        agree(folder)


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    """A tied Llama of two blocks with biases of its attention."""
    config = transformers.LlamaConfig(**LLAMA, tie_word_embeddings=True, attention_bias=True)
    return written(tmp_path_factory.mktemp("tied"), "llama", config)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return written(
        tmp_path_factory.mktemp("gpt2"), "gpt2", transformers.GPT2Config(**KINDS["gpt2"][0])
    )


@pytest.fixture
def copy(tmp_path):
    """Return a function that copies a folder and changes its arrays."""

    def copied(folder, change=None):
        shutil.copytree(folder, tmp_path / "copy")
        if change is not None:
            state = safetensors.torch.load_file(folder / "model.safetensors")
            change(state)
            state = {name: value.contiguous() for name, value in state.items()}
            metadata = {"format": "pt"}
            safetensors.torch.save_file(state, tmp_path / "copy/model.safetensors", metadata)
        return tmp_path / "copy"

    return copied


EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def repeat_head(state):
    state[HEAD] = state[EMBEDDING].clone()


def only_head(state):
    state[HEAD] = state.pop(EMBEDDING)


def no_prefix(state):
    for name in list(state):
        state[name.removeprefix("model.")] = state.pop(name)


def no_output_biases(state):
    for name in [name for name in state if name.endswith("o_proj.bias")]:
        del state[name]


def no_bias_in_one_block(state):
    del state["model.layers.1.self_attn.q_proj.bias"]


def integer_buffer(state):
    state["model.layers.1.self_attn.rotary_emb.inv_freq"] = torch.arange(2)


def frequencies(state):
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(2)


@pytest.mark.parametrize(
    "change",
    [
        repeat_head,
        only_head,
        no_prefix,
        no_output_biases,
        no_bias_in_one_block,
        frequencies,
        integer_buffer,
    ],
)
def test_arrays_that_transformers_reads_are_read(change, tied, copy):
    agree(copy(tied, change))


def test_a_gpt2_without_biases_is_read(gpt2, copy):
    def change(state):
        for name in [name for name in state if name.endswith(".bias")]:
            del state[name]

    agree(copy(gpt2, change))


def test_a_gpt2_by_other_names_of_its_sizes_and_by_defaults(gpt2, copy):
    folder = copy(gpt2)
    names = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
    edited(folder, n_embd=..., n_layer=..., n_head=..., layer_norm_epsilon=..., **names)
    edited(folder, max_position_embeddings=24, n_positions=...)
    agree(folder)
    edited(folder, n_embd=17)
    with refusals("n_embd must be equal to hidden_size = 16, got 17"):
        models.weights.open(folder)


def differing_head(state):
    state[HEAD] = state[EMBEDDING] + 1


def two_prefixes(state):
    state["norm.weight"] = state["model.norm.weight"].clone()


def unknown_array(state):
    state["model.layers.0.self_attn.q_norm.weight"] = torch.ones(4)


def integers(state):
    state["model.norm.weight"] = state["model.norm.weight"].to(torch.int32)


def float8(state):
    state["model.norm.weight"] = state["model.norm.weight"].to(torch.float8_e4m3fn)


@pytest.mark.parametrize(
    "change, line",
    [
        (differing_head, "'lm_head.weight'.* must be equal to 'embed_tokens.weight' if tie"),
        (two_prefixes, "'norm.weight'.* must be present once"),
        (unknown_array, "also has 'layers.0.self_attn.q_norm.weight'"),
        (integers, "'model.norm.weight'.* must be of dtype .* got I32"),
        (float8, "'model.norm.weight'.* must be of dtype .* got F8_E4M3"),
    ],
)
def test_other_arrays_are_refused_by_name(change, line, tied, copy):
    with refusals(line):
        models.weights.open(copy(tied, change))


def test_a_head_of_a_gpt2_that_differs_is_not_dropped(gpt2, copy):
    def change(state):
        state[HEAD] = state["transformer.wte.weight"] + 1

    folder = copy(gpt2, change)
    with refusals("tie_word_embeddings"):
        models.weights.open(folder)
    edited(folder, tie_word_embeddings=False)
    agree(folder)


@pytest.mark.parametrize(
    "changes, line",
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers must be 2, as in the weights"),
        ({"head_dim": 10**9}, r"num_attention_heads \* head_dim must be 16, as in the weights"),
        ({"vocab_size": 10**12}, "vocab_size must be 29, as in the weights"),
        ({"hidden_size": None}, "hidden_size must be an integer >= 1, got None"),
        ({"num_attention_heads": -4}, "num_attention_heads must be an integer >= 1"),
        ({"model_type": ["llama"]}, "model_type must be one of"),
        ({"auto_map": {"AutoModel": "code.py"}}, "auto_map must be None"),
    ],
)
def test_sizes_are_believed_only_if_the_arrays_have_them(changes, line, tied, copy):
    with refusals(line):
        models.weights.open(edited(copy(tied), **changes))


def test_a_window_of_the_class_that_the_file_leaves_out(tmp_path):
    config = transformers.MistralConfig(**LLAMA | {"max_position_embeddings": 9000})
    folder = written(tmp_path, "mistral", config)
    edited(folder, sliding_window=...)
    assert models.weights.open(folder).settings.max_length == 4096


def test_nan_in_the_last_block_is_noticed_first(tied, copy):
    def change(state):
        state["model.layers.1.mlp.up_proj.weight"][3, 2] = float("nan")

    reader = models.weights.open(copy(tied, change))
    with pytest.raises(storage.Damaged, match=r"mlp.in of block 1 has NaN or infinite entries"):
        reader.check_entries()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_shards_of_half_precision(dtype, tied, tmp_path):
    net = transformers.AutoModelForCausalLM.from_pretrained(tied).to(dtype)
    net.save_pretrained(tmp_path, max_shard_size="4KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    agree(tmp_path)


def test_weights_of_torch(tied, copy):
    folder = copy(tied)
    state = safetensors.torch.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    np.testing.assert_array_equal(logits(folder), logits(tied))


def test_an_adapter_beside_the_weights_is_not_passed_over(tied, copy):
    folder = copy(tied)
    (folder / "adapter_config.json").write_text("{}")
    with refusals("model must be a folder without adapter_config.json"):
        models.weights.open(folder)


def test_files_that_are_none_are_said_to_be(tied, copy):
    folder = copy(tied)
    weights = folder / "model.safetensors"
    weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(storage.Damaged, match="git-lfs pointer"):
        models.weights.open(folder)
    weights.unlink()
    weights.symlink_to(folder / "nowhere")
    with pytest.raises(storage.CheckpointError, match="No such file"):
        models.weights.open(folder)
    weights.unlink()
    weights.mkdir()
    with pytest.raises(storage.CheckpointError, match="no regular file"):
        models.weights.open(folder)
    weights.rmdir()
    index = folder / "model.safetensors.index.json"
    for content in ({"weight_map": {"a": "../../etc/passwd.bin"}}, {"weight_map": []}, [1]):
        index.write_text(json.dumps(content))
        with pytest.raises(storage.Damaged, match=r"index\.json is damaged"):
            models.weights.open(folder)


@pytest.mark.parametrize("biases", ["qwen2", "llama", "none"])
def test_a_folder_that_is_written_is_read_by_transformers(biases, tmp_path):
    shape = models.make_settings(
        vocab_size=VOCABULARY, width=16, num_blocks=2, num_heads=4, num_kv_heads=2,
        hidden_width=12, max_length=24, norm="rms", positions="rotary", gated=True, tied=False,
        activation="silu",
    )  # fmt: skip
    maps = {"qwen2": "qkv", "llama": "qkvo", "none": ""}[biases]
    initial = models.Initial(sd=0.3, biases=tuple(f"attn.{name}" for name in maps))
    params = models.initialise(jax.random.key(0, impl="threefry2x32"), shape, initial)
    params = {name: value + 0.1 for name, value in params.items()}
    models.weights.save(tmp_path, params, shape)
    agree(tmp_path)
