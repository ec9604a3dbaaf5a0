"""Llama and its close kin as Hugging Face has them: `LlamaForCausalLM`, Mistral, Qwen2.

Matrices stand as ``[out, in]`` there. The heads of query and key are halves, even components first.
"""

from collections.abc import Mapping
from typing import Any

from slth_jax import checks
from slth_jax.models.settings import Settings, make_settings, rotary_frequencies
from slth_jax.models.weights.layout import Layout, Row

PREFIX = ""
IGNORED = ("rotary_emb.inv_freq",)
ACTIVATIONS = {"silu": "silu", "relu": "relu", "gelu": "gelu_exact", "gelu_pytorch_tanh": "gelu"}
_MAPS = {
    "attn.q": "self_attn.q_proj",
    "attn.k": "self_attn.k_proj",
    "attn.v": "self_attn.v_proj",
    "attn.o": "self_attn.o_proj",
    "mlp.gate": "mlp.gate_proj",
    "mlp.in": "mlp.up_proj",
    "mlp.out": "mlp.down_proj",
}


def layout(fields: Mapping[str, Any]) -> Layout:
    """Return the table of names; `fields` say which biases there are, and what is tied."""
    kind = fields.get("model_type")
    attention = bool(fields.get("attention_bias", False)) and kind == "llama"
    biased = {f"attn.{name}" for name in "qkv"} if attention or kind == "qwen2" else set()
    biased |= {"attn.o"} if attention else set()
    if kind == "llama" and fields.get("mlp_bias", False):
        biased |= {"mlp.gate", "mlp.in", "mlp.out"}
    rows = [
        Row("ln_1.gain", "model.layers.{b}.input_layernorm.weight"),
        Row("ln_2.gain", "model.layers.{b}.post_attention_layernorm.weight"),
    ]
    for ours, theirs in _MAPS.items():
        rows.append(Row(ours, f"model.layers.{{b}}.{theirs}.weight", transposed=True))
        if ours in biased:
            rows.append(Row(f"{ours}.bias", f"model.layers.{{b}}.{theirs}.bias"))
    ends = [Row("wte", "model.embed_tokens.weight"), Row("ln_f.gain", "model.norm.weight")]
    if not fields.get("tie_word_embeddings", False):
        ends.append(Row("unembed", "lm_head.weight", transposed=True))
    return Layout(tuple(ends), tuple(rows))


def settings(fields: Mapping[str, Any]) -> Settings:
    """Return our settings for the fields of a Hugging Face ``LlamaConfig`` or its kin's.

    Raises:
      ValueError: a setting that this family does not have.
    """
    activation = fields.get("hidden_act", "silu")
    checks.choice("hidden_act", activation, ACTIVATIONS)
    rope = fields.get("rope_parameters") or {}
    scaling = fields.get("rope_scaling") or rope
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind != "default":
        raise checks.fail("rope_scaling", "'default' (plain rotary positions)", repr(kind))
    window = fields.get("sliding_window")
    if window is not None and fields.get("use_sliding_window", fields["model_type"] == "mistral"):
        length = min(fields.get("max_position_embeddings", 2048), window)
    else:
        length = fields.get("max_position_embeddings", 2048)
    width, heads = fields["hidden_size"], fields["num_attention_heads"]
    head_width = fields.get("head_dim") or width // heads
    base = rope.get("rope_theta", fields.get("rope_theta", 10_000.0))
    return make_settings(
        vocab_size=fields["vocab_size"],
        width=width,
        num_blocks=fields["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=fields.get("num_key_value_heads") or heads,
        head_width=head_width,
        hidden_width=fields["intermediate_size"],
        max_length=length,
        norm="rms",
        norm_eps=fields.get("rms_norm_eps", 1e-6),
        positions="rotary",
        rotary=rotary_frequencies(head_width, base),
        activation=ACTIVATIONS[activation],
        gated=True,
        tied=bool(fields.get("tie_word_embeddings", False)),
    )


def fields(settings: Settings, *, biases: bool = False, mlp_biases: bool = False) -> dict[str, Any]:
    """Return the fields of a Hugging Face ``LlamaConfig``.

    Raises:
      ValueError: settings that Llama does not have; the line names the first.
    """
    s = settings
    wanted = {
        "norm": "rms",
        "positions": "rotary",
        "rotary_repeat": 1,
        "gated": True,
        "causal": True,
        "value_width": s.head_width,
        "logit_scale": s.head_width**-0.5,
        "outputs": s.vocab_size,
    }
    for name, value in wanted.items():
        if getattr(s, name) != value:
            raise checks.fail(name, f"{value!r} in a Llama", repr(getattr(s, name)))
    base = 10_000.0 if s.head_width == 2 else s.rotary[1] ** (-s.head_width / 2)
    base = float(f"{base:.12g}")  # the base is read off a frequency: without its round-off
    found = rotary_frequencies(s.head_width, base)
    if any(abs(a - b) > 1e-9 * b for a, b in zip(s.rotary, found, strict=True)):
        raise checks.fail("rotary", "base^(-2 i / k) in a Llama", f"{s.rotary[:3]} ...")
    activations = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
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
        "hidden_act": activations[s.activation],
        "attention_bias": biases,
        "mlp_bias": mlp_biases,
        "tie_word_embeddings": s.tied,
        "bos_token_id": min(1, s.vocab_size - 1),
        "eos_token_id": min(2, s.vocab_size - 1),
    }
