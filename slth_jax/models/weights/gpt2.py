"""GPT-2 in the form of Hugging Face's `GPT2LMHeadModel`: matrices are applied as ``x @ w``."""

import re
from collections.abc import Mapping
from typing import Any

from slth_jax import checks
from slth_jax.models.settings import Settings, make_settings
from slth_jax.models.weights import keys
from slth_jax.models.weights.keys import Keys
from slth_jax.models.weights.layout import (
    WRITTEN_ACTIVATIONS,
    Layout,
    Row,
    check_kind,
    plain_fields,
)

PREFIX = "transformer."
IGNORED = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)$")  # buffers: causal masks
ACTIVATIONS = {
    "relu": "relu", "gelu": "gelu_exact", "gelu_python": "gelu_exact", "gelu_new": "gelu",
    "gelu_fast": "gelu", "gelu_accurate": "gelu", "gelu_pytorch_tanh": "gelu",
    "gelu_python_tanh": "gelu", "silu": "silu", "swish": "silu",
}  # fmt: skip
"""Our activations by the names of `transformers`."""

KEYS = Keys(
    used={
        "vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12,
        "n_inner": None, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
        "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False,
        "tie_word_embeddings": True,
    },
    only=keys.HUGGING_FACE_ONLY | {"is_causal": (True, None)},
    ignored=keys.HUGGING_FACE_IGNORED,
    aliases={
        "hidden_size": "n_embd", "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head", "num_hidden_layers": "n_layer",
    },
)  # fmt: skip


def layout(fields: Mapping[str, Any]) -> Layout:
    """Return the table from this library's array names to Hugging Face's names."""
    rows = []
    for ours, theirs in {
        "ln_1": "ln_1",
        "ln_2": "ln_2",
        "attn.o": "attn.c_proj",
        "mlp.in": "mlp.c_fc",
        "mlp.out": "mlp.c_proj",
    }.items():
        first = f"{ours}.gain" if ours.startswith("ln") else ours
        rows.append(Row(first, f"h.{{b}}.{theirs}.weight"))
        rows.append(Row(f"{ours}.bias", f"h.{{b}}.{theirs}.bias"))
    inverse = bool(fields.get("scale_attn_by_inverse_layer_idx"))
    for third, name in enumerate("qkv"):
        divided = inverse and name == "q"  # a block's logit scale is folded into queries
        for ours, theirs in ((f"attn.{name}", "weight"), (f"attn.{name}.bias", "bias")):
            rows.append(Row(ours, f"h.{{b}}.attn.c_attn.{theirs}", third=third, divided=divided))
    ends = [
        Row("wte", "wte.weight"),
        Row("wpe", "wpe.weight"),
        Row("ln_f.gain", "ln_f.weight"),
        Row("ln_f.bias", "ln_f.bias"),
    ]
    if not fields.get("tie_word_embeddings", True):
        ends.append(Row("unembed", "lm_head.weight", transposed=True))
    return Layout(tuple(ends), tuple(rows))


def sizes(fields: Mapping[str, Any]) -> dict[str, tuple[str, int, int]]:
    """Return the configured sizes that `layout.check_sizes` compares with the arrays."""
    values = keys.read(fields, KEYS, kind="gpt2")
    width = keys.size(values, "n_embd")
    return {
        "vocab_size": ("wte", 0, keys.size(values, "vocab_size")),
        "n_embd": ("wte", 1, width),
        "n_positions": ("wpe", 0, keys.size(values, "n_positions")),
        "n_inner": ("mlp.in", 1, keys.size(values, "n_inner", 4 * width)),
        "the width of the queries": ("attn.q", 1, width),
    }


def num_blocks(fields: Mapping[str, Any]) -> int:
    """Return the number of blocks."""
    return keys.size(keys.read(fields, KEYS, kind="gpt2"), "n_layer")


def settings(fields: Mapping[str, Any]) -> Settings:
    """Return the `Settings` that correspond to the fields of a ``GPT2Config`` (Hugging Face).

    Raises:
      ValueError: a key or a value is not supported.
    """
    values = keys.read(fields, KEYS, kind="gpt2")
    activation = checks.choice("activation_function", values["activation_function"], ACTIVATIONS)
    keys.flag(values, "scale_attn_by_inverse_layer_idx")
    return make_settings(
        vocab_size=keys.size(values, "vocab_size"),
        width=keys.size(values, "n_embd"),
        num_blocks=keys.size(values, "n_layer"),
        num_heads=keys.size(values, "n_head"),
        hidden_width=values["n_inner"],
        max_length=keys.size(values, "n_positions"),
        norm_eps=checks.number("layer_norm_epsilon", values["layer_norm_epsilon"], low=0),
        activation=ACTIVATIONS[activation],
        logit_scale=None if keys.flag(values, "scale_attn_weights") else 1.0,
        tied=keys.flag(values, "tie_word_embeddings"),
    )


def fields(settings: Settings) -> dict[str, Any]:
    """Return the fields of the ``GPT2Config`` (Hugging Face) that corresponds to `settings`.

    Raises:
      ValueError: GPT-2 cannot have these settings; the error message names the first wrong setting.
    """
    s = settings
    plain = plain_fields(s, tied=s.tied, logit_scale=1.0 if s.logit_scale == 1.0 else None)
    check_kind(s, "GPT-2", plain)
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": s.vocab_size,
        "n_positions": s.max_length,
        "n_embd": s.width,
        "n_layer": s.num_blocks,
        "n_head": s.num_heads,
        "n_inner": None if s.hidden_width == 4 * s.width else s.hidden_width,
        "activation_function": WRITTEN_ACTIVATIONS[s.activation],
        "layer_norm_epsilon": s.norm_eps,
        "scale_attn_weights": s.logit_scale != 1.0,
        "tie_word_embeddings": s.tied,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "bos_token_id": s.vocab_size - 1,
        "eos_token_id": s.vocab_size - 1,
    }
