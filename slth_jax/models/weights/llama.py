"""Llama, Mistral and Qwen2 in the form in which Hugging Face stores them.

Matrices are stored as ``[out, in]``. In each query and key head the even components of all rotated
pairs precede the odd components.
"""

import re
from collections.abc import Mapping
from typing import Any

from slth_jax import checks
from slth_jax.models.settings import Settings, make_settings, rotary_frequencies
from slth_jax.models.weights import keys, rope
from slth_jax.models.weights.gpt2 import ACTIVATIONS
from slth_jax.models.weights.keys import Keys
from slth_jax.models.weights.layout import WRITTEN_ACTIVATIONS, Layout, Row, check_kind

PREFIX = "model."
IGNORED = re.compile(r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq$")  # computed from settings
_MAPS = {
    "attn.q": "self_attn.q_proj",
    "attn.k": "self_attn.k_proj",
    "attn.v": "self_attn.v_proj",
    "attn.o": "self_attn.o_proj",
    "mlp.gate": "mlp.gate_proj",
    "mlp.in": "mlp.up_proj",
    "mlp.out": "mlp.down_proj",
}
_USED = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": None, "head_dim": None,
    "hidden_act": "silu", "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False, **rope.KEYS,
}  # fmt: skip
_ONLY = keys.HUGGING_FACE_ONLY | {
    "is_causal": (True, None),
    "rope_interleaved": (False, None),
    "use_mrope": (False, None),
}
KEYS = {
    "llama": Keys(
        _USED | {"attention_bias": False, "mlp_bias": False},
        _ONLY | {"sliding_window": (None,)},
        keys.HUGGING_FACE_IGNORED,
    ),
    "mistral": Keys(
        _USED | {
            "intermediate_size": 14336, "num_key_value_heads": 8, "sliding_window": 4096,
            "max_position_embeddings": 131072,
        },
        _ONLY | {"attention_bias": (False, None), "mlp_bias": (False, None)},
        keys.HUGGING_FACE_IGNORED,
    ),
    "qwen2": Keys(
        _USED | {
            "vocab_size": 151936, "intermediate_size": 22016, "num_key_value_heads": 32,
            "max_position_embeddings": 32768, "sliding_window": 4096, "use_sliding_window": False,
            "max_window_layers": 28, "layer_types": None,
        },
        _ONLY | {"mlp_bias": (False, None)},
        keys.HUGGING_FACE_IGNORED | {"attention_bias"},  # Qwen2 always has these biases
    ),
}  # fmt: skip
"""The keys of each `model_type`, with the defaults of its class in `transformers`."""


def layout(fields: Mapping[str, Any]) -> Layout:
    """Return the table of array names; it depends on the biases and on whether `wte` is tied."""
    kind = fields["model_type"]
    attention = kind == "llama" and bool(fields.get("attention_bias"))
    biased = {f"attn.{name}" for name in "qkv"} if attention or kind == "qwen2" else set()
    biased |= {"attn.o"} if attention else set()
    if kind == "llama" and fields.get("mlp_bias"):
        biased |= {"mlp.gate", "mlp.in", "mlp.out"}
    rows = [
        Row("ln_1.gain", "layers.{b}.input_layernorm.weight"),
        Row("ln_2.gain", "layers.{b}.post_attention_layernorm.weight"),
    ]
    for ours, theirs in _MAPS.items():
        rows.append(Row(ours, f"layers.{{b}}.{theirs}.weight", transposed=True))
        if ours in biased:
            rows.append(Row(f"{ours}.bias", f"layers.{{b}}.{theirs}.bias"))
    ends = [Row("wte", "embed_tokens.weight"), Row("ln_f.gain", "norm.weight")]
    if not fields.get("tie_word_embeddings"):
        ends.append(Row("unembed", "lm_head.weight", transposed=True))
    return Layout(tuple(ends), tuple(rows))


def sizes(fields: Mapping[str, Any]) -> dict[str, tuple[str, int, int]]:
    """Return the configured sizes that `layout.check_sizes` compares with the arrays."""
    values = keys.read(fields, KEYS[fields["model_type"]], kind=fields["model_type"])
    heads, kv_heads, head_width = _heads(values)
    return {
        "vocab_size": ("wte", 0, keys.size(values, "vocab_size")),
        "hidden_size": ("wte", 1, keys.size(values, "hidden_size")),
        "intermediate_size": ("mlp.in", 1, keys.size(values, "intermediate_size")),
        "num_attention_heads * head_dim": ("attn.q", 1, heads * head_width),
        "num_key_value_heads * head_dim": ("attn.k", 1, kv_heads * head_width),
    }


def num_blocks(fields: Mapping[str, Any]) -> int:
    """Return the number of blocks."""
    return keys.size(
        keys.read(fields, KEYS[fields["model_type"]], kind=fields["model_type"]),
        "num_hidden_layers",
    )


def settings(fields: Mapping[str, Any]) -> Settings:
    """Return the `Settings` for a ``LlamaConfig``, ``MistralConfig`` or ``Qwen2Config``.

    Raises:
      ValueError: a key or a value is not supported.
    """
    values = keys.read(fields, KEYS[fields["model_type"]], kind=fields["model_type"])
    activation = checks.choice("hidden_act", values["hidden_act"], ACTIVATIONS)
    for name in ("attention_bias", "mlp_bias"):
        keys.flag({name: False} | values, name)
    heads, kv_heads, head_width = _heads(values)
    length = keys.size(values, "max_position_embeddings")
    frequencies, scale = rope.frequencies(values, head_width, length)
    return make_settings(
        vocab_size=keys.size(values, "vocab_size"),
        width=keys.size(values, "hidden_size"),
        num_blocks=keys.size(values, "num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_width=head_width,
        hidden_width=keys.size(values, "intermediate_size"),
        max_length=min(length, _window(values) or length),
        norm="rms",
        norm_eps=checks.number("rms_norm_eps", values["rms_norm_eps"], low=0),
        positions="rotary",
        rotary=frequencies,
        # Cosine and sine of queries and of keys are multiplied by the scale, so logits are
        # multiplied by its square.
        logit_scale=head_width**-0.5 * scale**2,
        activation=ACTIVATIONS[activation],
        gated=True,
        tied=keys.flag(values, "tie_word_embeddings"),
    )


def _heads(values: Mapping[str, Any]) -> tuple[int, int, int]:
    """Return the number h of query heads, the number g of key/value heads, the head width k."""
    heads = keys.size(values, "num_attention_heads")
    width = keys.size(values, "hidden_size")
    return (
        heads,
        keys.size(values, "num_key_value_heads", heads),
        keys.size(values, "head_dim", width // heads),
    )


def _window(values: Mapping[str, Any]) -> int | None:
    """Return the length of the attention window; None if no block has a window.

    The library does not compute windows. The reader therefore limits sequences to the window's
    length, for which the window has no effect.
    """
    if "sliding_window" not in values:
        return None
    types = values.get("layer_types")
    if "use_sliding_window" in values:
        count = keys.size(values, "num_hidden_layers")
        if not keys.flag(values, "use_sliding_window"):
            if types is not None and types != ["full_attention"] * count:
                allowed = "full_attention in all blocks unless use_sliding_window is true"
                raise checks.fail("layer_types", allowed, repr(types)[:80])
            return None
        if types is None:
            first = checks.integer("max_window_layers", values["max_window_layers"], low=0)
            if first >= count:
                return None
        elif not isinstance(types, list) or len(types) != count:
            raise checks.fail("layer_types", f"a list of {count} words", repr(types)[:80])
        else:
            for word in types:
                checks.choice("layer_types", word, ("full_attention", "sliding_attention"))
            if "sliding_attention" not in types:
                return None
    if values["sliding_window"] is None:
        return None
    return keys.size(values, "sliding_window")


def fields(settings: Settings, names: frozenset[str]) -> dict[str, Any]:
    """Return fields of a ``Qwen2Config`` if only q, k, v have biases, else a ``LlamaConfig``.

    Args:
      settings: the settings of the network.
      names: the names of the network's parameters; they show which biases exist.

    Raises:
      ValueError: Llama cannot have these settings; the error message names the first wrong setting.
    """
    s = settings
    expected = {
        "norm": "rms",
        "positions": "rotary",
        "rotary_repeat": 1,
        "gated": True,
        "causal": True,
        "value_width": s.head_width,
        "logit_scale": s.head_width**-0.5,
        "outputs": s.vocab_size,
    }
    check_kind(s, "Llama", expected)
    base = 10_000.0 if s.head_width == 2 else s.rotary[1] ** (-s.head_width / 2)
    base = float(f"{base:.12g}")  # removes the round-off of the computation
    plain = rotary_frequencies(s.head_width, base)
    if any(abs(a - b) > 1e-9 * b for a, b in zip(s.rotary, plain, strict=True)):
        raise checks.fail("rotary", "base^(-2 i / k) in a Llama", f"{s.rotary[:3]} ...")
    biases, mlp_biases = "h.attn.q.bias" in names, "h.mlp.in.bias" in names
    # Llama has biases on all four maps of attention, Qwen2 only on queries, keys and values.
    qwen2 = biases and not mlp_biases and "h.attn.o.bias" not in names
    return {
        "architectures": ["Qwen2ForCausalLM" if qwen2 else "LlamaForCausalLM"],
        "model_type": "qwen2" if qwen2 else "llama",
        "vocab_size": s.vocab_size,
        "hidden_size": s.width,
        "intermediate_size": s.hidden_width,
        "num_hidden_layers": s.num_blocks,
        "num_attention_heads": s.num_heads,
        "num_key_value_heads": s.num_kv_heads,
        "head_dim": s.head_width,
        "max_position_embeddings": s.max_length,
        "rms_norm_eps": s.norm_eps,
        "rope_theta": base,
        "rope_scaling": None,
        "hidden_act": WRITTEN_ACTIVATIONS[s.activation],
        **({} if qwen2 else {"attention_bias": biases, "mlp_bias": mlp_biases}),
        "tie_word_embeddings": s.tied,
        "bos_token_id": min(1, s.vocab_size - 1),
        "eos_token_id": min(2, s.vocab_size - 1),
    }
