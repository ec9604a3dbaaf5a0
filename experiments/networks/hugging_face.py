"""Cases: Hugging Face folders, on which this library is compared with `transformers`.

`draw` changes one to four keys of a configuration. A key gets a value from the tables below or a
value that no configuration should have, or the key is removed. A key may also be taken from another
family of models. The arrays have the shapes of the changed configuration if `transformers` accepts
it, and the shapes of the unchanged configuration if not.
"""

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import transformers

from experiments.networks.judge import Case, Outputs
from slth_jax import models

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

VOCABULARY, LENGTH = 29, 11
TOKENS = np.random.default_rng(0).integers(2, VOCABULARY, (2, LENGTH))  # 1: RoBERTa's padding
ENCODERS = ("bert", "roberta")
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"

_ROPES: list[Any] = [
    None,
    {"type": "linear", "factor": 3.0},
    {"rope_type": "linear", "factor": 2.0, "rope_theta": 999.0},
    {"rope_type": "default", "rope_theta": 77.0},
    {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 8},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8},
    {"rope_type": "yarn", "factor": 2.0, "attention_factor": 1.3, "beta_fast": 8, "beta_slow": 2,
     "original_max_position_embeddings": 16},
    {"rope_type": "yarn", "factor": 8.0, "mscale": 0.7, "mscale_all_dim": 1.1, "truncate": False,
     "original_max_position_embeddings": 8},
    "linear", {"type": "dynamic", "factor": 2.0}, {"type": "linear", "factor": 0},
    {"type": "linear", "factor": 2.0, "extra": 1},
    {"rope_type": "default", "rope_theta": 9.0, "partial_rotary_factor": 0.5},
    {"rope_type": "longrope", "short_factor": [1.0, 2.0], "long_factor": [1.0, 2.0]},
]  # fmt: skip
_ROPE = {
    "rope_theta": [10000.0, 300.0, 5e5, None, "big", 0, -3.0, [1]],
    "rope_scaling": _ROPES,
    "rope_parameters": _ROPES,
    "partial_rotary_factor": [1.0, 0.5],
    "original_max_position_embeddings": [8],
}
_ACTIVATIONS = [
    "silu", "swish", "relu", "gelu", "gelu_new", "gelu_fast", "gelu_python", "gelu_pytorch_tanh",
    "gelu_accurate", "gelu_python_tanh", "quick_gelu", "gelu_10", "mish", "relu2", "tanh",
    "linear", 3,
]  # fmt: skip
_COMMON: dict[str, list[Any]] = {
    "is_causal": [True, False],
    "is_decoder": [True, False],
    "quantization_config": [None, {"quant_method": "fp8"}],
    "use_cache": [True, False],
    "attn_logit_softcapping": [5.0],
    "final_logit_softcapping": [5.0],
    "query_pre_attn_scalar": [3.0],
    "attention_multiplier": [0.3],
    "tie_word_embeddings": [True, False, "yes"],
    "add_cross_attention": [False, True],
    "mystery": [1],
    "num_hidden_layers": [1, 2, 3],
    "num_attention_heads": [2, 4],
}
_LLAMA = _ROPE | _COMMON | {
    "hidden_act": _ACTIVATIONS,
    "hidden_size": [8, 16],
    "intermediate_size": [12, 20],
    "rms_norm_eps": [1e-6, 0.03, None, "small"],
    "num_key_value_heads": [1, 2, 4, None, 0],
    "attention_dropout": [0.0, 0.3],
    "attention_bias": [True, False, 1],
    "mlp_bias": [True, False],
    "head_dim": [None, 4, 6],
    "pretraining_tp": [1, 2],
    "rope_interleaved": [False, True],
    "sliding_window": [None, 3, LENGTH, 4096],
    "use_sliding_window": [True, False],
    "max_window_layers": [0, 1, 2, 28],
    "layer_types": [None, ["full_attention"] * 2, ["sliding_attention", "full_attention"],
                    ["full_attention"]],
    "max_position_embeddings": [24, LENGTH, 5],
    "use_qk_norm": [True],
}  # fmt: skip
_SMALL = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 24,
}  # fmt: skip
_GPT2 = _COMMON | {
    "activation_function": _ACTIVATIONS,
    "n_inner": [None, 20, 64],
    "n_embd": [8, 16],
    "n_head": [2, 4],
    "n_layer": [1, 2],
    "n_positions": [24, LENGTH],
    "hidden_size": [16],
    "layer_norm_epsilon": [1e-5, 0.02, None],
    "scale_attn_weights": [True, False, 1],
    "scale_attn_by_inverse_layer_idx": [True, False],
    "reorder_and_upcast_attn": [True, False],
    "summary_type": ["cls_index", "mean"],
    "attn_pdrop": [0.0, 0.5],
}
_BERT = _COMMON | {
    "hidden_act": _ACTIVATIONS,
    "hidden_size": [8, 16],
    "intermediate_size": [20, 12],
    "layer_norm_eps": [1e-12, 0.01, None],
    "position_embedding_type": ["absolute", "relative_key", "relative_key_query"],
    "type_vocab_size": [1, 2, 3],
    "max_position_embeddings": [13, LENGTH],
    "hidden_dropout_prob": [0.1, 0.0],
    "embedding_size": [8],
}
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, list[Any]]]] = {
    "llama": (_SMALL, _LLAMA),
    "mistral": (_SMALL | {"sliding_window": 4096}, _LLAMA),
    "qwen2": (_SMALL, _LLAMA),
    "gpt2": (
        {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 24},
        _GPT2,
    ),
    "bert": (
        {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2,
         "num_attention_heads": 4, "intermediate_size": 20, "max_position_embeddings": 13},
        _BERT,
    ),
    "roberta": (
        {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2,
         "num_attention_heads": 4, "intermediate_size": 20, "max_position_embeddings": 15},
        _BERT | {"max_position_embeddings": [LENGTH + 2, LENGTH]},
    ),
}  # fmt: skip
"""For each `model_type`: a small configuration, and the values that a key may be changed to."""
_STRANGE: list[Any] = [None, True, False, 0, 1, 2, -1, 0.5, "x", [], {}, 1e-5, 16]


def write(folder: Path, kind: str, config: Any, seed: int = 0) -> Path:
    """Write a model folder; weights, biases and gains are random, so that all have an effect."""
    auto = transformers.AutoModel if kind in ENCODERS else transformers.AutoModelForCausalLM
    net = auto.from_config(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    net.save_pretrained(folder)
    return folder


def edit(folder: Path, **changes: Any) -> Path:
    """Change keys of config.json; if the new value is `...`, the key is removed."""
    path = folder / "config.json"
    fields = {k: v for k, v in (json.loads(path.read_text()) | changes).items() if v is not ...}
    path.write_text(json.dumps(fields))
    return folder


def reference(folder: Path, tokens: np.ndarray = TOKENS) -> np.ndarray:
    """Compute the logits of a folder (the last states of an encoder) with transformers."""
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    auto = transformers.AutoModel if kind in ENCODERS else transformers.AutoModelForCausalLM
    net = auto.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        output = net(torch.tensor(tokens))
    return (output.last_hidden_state if kind in ENCODERS else output.logits).numpy()


def logits(path: Path, tokens: np.ndarray = TOKENS) -> np.ndarray:
    """Return the outputs that this library computes for a model."""
    reader = models.weights.open(path)
    reader.check_entries()
    return np.asarray(models.apply(reader.load(), tokens, reader.settings))


def both(folder: Path) -> tuple[Outputs, Outputs]:
    """Return two functions that compute a folder's outputs: with this library and transformers."""
    return (lambda: logits(folder)), (lambda: reference(folder))


def draw(kind: str, seed: str) -> Case:
    """Draw a case: a folder of the family `kind` whose configuration is changed at random."""
    rng = random.Random(f"{seed} {kind}")
    base, table = FAMILIES[kind]
    keys = sorted({*base, *table})
    changes: dict[str, Any] = {}
    for key in rng.sample(keys, k=rng.choice((1, 2, 2, 3, 4))):
        action = rng.random()
        if action < 0.7 and key in table:
            changes[key] = rng.choice(table[key])
        elif action < 0.85:
            changes[key] = ...
        else:
            changes[key] = rng.choice(_STRANGE)
    words = ", ".join(f"{k} absent" if v is ... else f"{k}={v!r}" for k, v in changes.items())
    return Case(words, lambda folder: _written(folder, kind, base, changes))


def _written(folder: Path, kind: str, base: dict, changes: dict) -> tuple[Outputs, Outputs]:
    fields = {k: v for k, v in (base | changes).items() if v is not ...}
    try:
        write(folder, kind, transformers.AutoConfig.for_model(kind, **fields))
    except Exception:  # transformers refuses it: use the arrays of the unchanged configuration
        write(folder, kind, transformers.AutoConfig.for_model(kind, **base))
    (folder / "config.json").write_text(json.dumps(fields | {"model_type": kind}))
    return both(folder)


def change_arrays(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change the arrays of a folder in place."""
    file = folder / "model.safetensors"
    state = safetensors.torch.load_file(file)
    change(state)
    state = {name: value.contiguous() for name, value in state.items()}
    safetensors.torch.save_file(state, file, {"format": "pt"})


def _case(
    kind: str,
    name: str,
    change: Callable[[dict[str, torch.Tensor]], None] | None = None,
    build: Mapping[str, Any] | None = None,
    **fields: Any,
) -> Case:
    """Return a named case: a folder of the family `kind` with changes.

    Args:
      kind: the `model_type` of the configuration.
      name: the description of the case.
      change: a function that changes the arrays in place; None to leave the arrays unchanged.
      build: fields that are changed in the configuration before the arrays are built.
      **fields: fields of config.json that are changed after the arrays are built.
    """

    def make(folder: Path) -> tuple[Outputs, Outputs]:
        config = transformers.AutoConfig.for_model(kind, **FAMILIES[kind][0], **(build or {}))
        write(folder, kind, config)
        if change is not None:
            change_arrays(folder, change)
        absent = {"rope_parameters": ...} if kind in ("llama", "mistral", "qwen2") else {}
        edit(folder, **({"layer_types": ...} if kind == "qwen2" else {}), **absent | fields)
        return both(folder)

    return Case(f"{kind}: {name}", make)


def _drop(ending: str, state: dict[str, torch.Tensor]) -> None:
    for name in [name for name in state if name.endswith(ending)]:
        del state[name]


def _set(name: str, value: Callable[[dict[str, torch.Tensor]], torch.Tensor]) -> Callable:
    def change(state: dict[str, torch.Tensor]) -> None:
        state[name] = value(state)

    return change


def _only_head(state: dict[str, torch.Tensor]) -> None:
    state[HEAD] = state.pop(EMBEDDING)


def _nan(state: dict[str, torch.Tensor]) -> None:
    state["model.layers.1.mlp.up_proj.weight"][3, 2] = float("nan")


def _place_of_weights(name: str, damage: Callable[[Path], Any]) -> Case:
    def make(folder: Path) -> tuple[Outputs, Outputs]:
        ours, makers = _case("llama", "").make(folder)
        file = folder / "model.safetensors"
        state = safetensors.torch.load_file(file)
        file.unlink()
        damage(file)
        if name.startswith("pytorch"):
            torch.save(state, file.with_name("pytorch_model.bin"))
        return ours, makers

    return Case(f"llama: {name}", make)


_TIED = {"tie_word_embeddings": True}
_QUERY = "model.layers.0.self_attn.q_proj.weight"
_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
CASES: tuple[Case, ...] = (
    _case("llama", "is_causal false", is_causal=False),
    _case("gpt2", "is_causal false", is_causal=False),
    _case("gpt2", "an lm_head.weight that differs from wte",
          _set(HEAD, lambda s: s["transformer.wte.weight"] + 1)),
    _case("gpt2", "an lm_head.weight that differs from wte, untied",
          _set(HEAD, lambda s: s["transformer.wte.weight"] + 1), tie_word_embeddings=False),
    _case("llama", "base in rope_scaling", rope_scaling={"rope_type": "default", "rope_theta": 77}),
    _case("llama", "base in rope_parameters",
          rope_parameters={"rope_type": "default", "rope_theta": 123.0}),
    _case("llama", "base in both places",
          rope_parameters={"rope_type": "default", "rope_theta": 123.0}, rope_theta=77.0),
    _case("mistral", "the window of the class, 4,096, absent", sliding_window=...),
    _case("mistral", "a window shorter than the sequence", sliding_window=3),
    _case("llama", "quantization_config", quantization_config={"quant_method": "fp8"}),
    _case("llama", "a matrix of integers", _set(_QUERY, lambda s: s[_QUERY].to(torch.int8))),
    _case("llama", "a matrix of float8",
          _set(_QUERY, lambda s: s[_QUERY].to(torch.float8_e4m3fn))),
    _case("llama", "two prefixes of one array",
          _set("norm.weight", lambda s: s["model.norm.weight"].clone())),
    _case("llama", "tied, an equal lm_head.weight repeated",
          _set(HEAD, lambda s: s[EMBEDDING].clone()), build=_TIED),
    _case("llama", "tied, an lm_head.weight that differs",
          _set(HEAD, lambda s: s[EMBEDDING] + 1), build=_TIED),
    _case("llama", "tied, lm_head.weight alone", _only_head, build=_TIED),
    _case("gpt2", "sizes by the names hidden_size, num_hidden_layers, ...", n_embd=..., n_layer=...,
          n_head=..., n_positions=..., hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
          max_position_embeddings=24),
    _case("gpt2", "all other keys absent", layer_norm_epsilon=..., activation_function=...,
          scale_attn_weights=..., n_inner=...),
    _case("gpt2", "scale_attn_by_inverse_layer_idx", scale_attn_by_inverse_layer_idx=True),
    _case("gpt2", "scale_attn_weights false", scale_attn_weights=False),
    _case("llama", "biases on query, key and value only", lambda s: _drop("o_proj.bias", s),
          build={"attention_bias": True}),
    _case("gpt2", "no biases", lambda s: _drop("bias", s)),
    *(_case("llama", f"activation {name}", hidden_act=name) for name in _ACTIVATIONS),
    *(_case("llama", f"rope_scaling {rope!r}", rope_scaling=rope) for rope in _ROPES[1:8]),
    *(_case("llama", f"rope_scaling {rope!r}", rope_scaling=rope) for rope in _ROPES[8:]),
    *(_case("llama", f"rope_theta {base!r}", rope_theta=base)
      for base in (None, "big", 0, -3.0, [1])),
    _case("qwen2", "use_sliding_window over all blocks", use_sliding_window=True,
          sliding_window=LENGTH, max_window_layers=0),
    _case("qwen2", "use_sliding_window over no block", use_sliding_window=True, sliding_window=3,
          max_window_layers=2),
    _case("qwen2", "a short window in one of two blocks", use_sliding_window=True,
          sliding_window=3, max_window_layers=1),
    _case("llama", "NaN in the last block", _nan),
    _case("bert", "is_decoder", is_decoder=True),
    _case("bert", "relative positions", position_embedding_type="relative_key"),
    _case("roberta", "sizes, all other keys absent", layer_norm_eps=..., hidden_act=...,
          type_vocab_size=..., pad_token_id=..., position_embedding_type=...),
    _case("roberta", "pad_token_id 0", build={"pad_token_id": 0}),
    _case("roberta", "pad_token_id null", pad_token_id=None),
    _case("roberta", "is_decoder", is_decoder=True),
    _place_of_weights("pytorch_model.bin", lambda file: None),
    _place_of_weights("a git-lfs pointer", lambda file: file.write_text(_POINTER)),
    _place_of_weights("a dangling link", lambda file: file.symlink_to("nowhere")),
    _place_of_weights("a folder with a weight file's name", lambda file: file.mkdir()),
)  # fmt: skip
