"""GPT-2 as Hugging Face has it: `GPT2LMHeadModel`, matrices applied as ``x @ w``."""

from collections.abc import Mapping
from typing import Any

from slth_jax import checks
from slth_jax.models.settings import Settings, make_settings
from slth_jax.models.weights.layout import Layout, Row

PREFIX = "transformer."
IGNORED = (".attn.bias", ".attn.masked_bias", "lm_head.weight")  # causal masks; tied to wte
ACTIVATIONS = {"relu": "relu", "gelu": "gelu_new", "gelu_exact": "gelu", "silu": "silu"}


def layout(fields: Mapping[str, Any]) -> Layout:
    """Return the table of names; all GPT-2 have all of them."""
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
    for third, name in enumerate("qkv"):
        rows.append(Row(f"attn.{name}", "h.{b}.attn.c_attn.weight", third=third))
        rows.append(Row(f"attn.{name}.bias", "h.{b}.attn.c_attn.bias", third=third))
    ends = (
        Row("wte", "wte.weight"),
        Row("wpe", "wpe.weight"),
        Row("ln_f.gain", "ln_f.weight"),
        Row("ln_f.bias", "ln_f.bias"),
    )
    return Layout(ends, tuple(rows))


def settings(fields: Mapping[str, Any]) -> Settings:
    """Return our settings for the fields of a Hugging Face ``GPT2Config``.

    Raises:
      ValueError: a setting that this family does not have.
    """
    activation = fields.get("activation_function", "gelu_new")
    ours = {theirs: name for name, theirs in ACTIVATIONS.items()}
    ours["gelu_pytorch_tanh"] = "gelu"
    checks.choice("activation_function", activation, ours)
    for name, value in {
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
        "tie_word_embeddings": True,
    }.items():
        if fields.get(name, value) != value:
            raise checks.fail(name, repr(value), repr(fields[name]))
    return make_settings(
        vocab_size=fields["vocab_size"],
        width=fields["n_embd"],
        num_blocks=fields["n_layer"],
        num_heads=fields["n_head"],
        hidden_width=fields.get("n_inner"),
        max_length=fields.get("n_positions", 1024),
        norm_eps=fields.get("layer_norm_epsilon", 1e-5),
        activation=ours[activation],
    )


def fields(settings: Settings) -> dict[str, Any]:
    """Return the fields of a Hugging Face ``GPT2Config``.

    Raises:
      ValueError: settings that GPT-2 does not have; the line names the first.
    """
    s = settings
    plain = make_settings(
        vocab_size=s.vocab_size,
        width=s.width,
        num_blocks=s.num_blocks,
        num_heads=s.num_heads,
        hidden_width=s.hidden_width,
        max_length=s.max_length,
        norm_eps=s.norm_eps,
        activation=s.activation,
    )
    for name, value in vars(plain).items():
        if getattr(s, name) != value and name != "factor":
            raise checks.fail(name, f"{value!r} in a GPT-2", repr(getattr(s, name)))
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": s.vocab_size,
        "n_positions": s.max_length,
        "n_embd": s.width,
        "n_layer": s.num_blocks,
        "n_head": s.num_heads,
        "n_inner": None if s.hidden_width == 4 * s.width else s.hidden_width,
        "activation_function": ACTIVATIONS[s.activation],
        "layer_norm_epsilon": s.norm_eps,
        "tie_word_embeddings": True,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "bos_token_id": s.vocab_size - 1,
        "eos_token_id": s.vocab_size - 1,
    }
