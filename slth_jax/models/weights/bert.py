"""BERT in the form of Hugging Face's `BertModel`: an encoder whose outputs are its states.

Matrices are stored as ``[out, in]``. The pooler, which only classifiers use, is not read.
"""

import re
from collections.abc import Mapping
from typing import Any

from slth_jax import checks
from slth_jax.models.settings import Settings, make_settings
from slth_jax.models.weights import keys
from slth_jax.models.weights.gpt2 import ACTIVATIONS
from slth_jax.models.weights.keys import Keys
from slth_jax.models.weights.layout import (
    WRITTEN_ACTIVATIONS,
    Layout,
    Row,
    check_kind,
    plain_fields,
)

PREFIX = "bert."
IGNORED = re.compile(r"(pooler\.dense\.(weight|bias)|embeddings\.position_ids)$")
KEYS = Keys(
    used={
        "vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12,
        "num_attention_heads": 12, "intermediate_size": 3072, "hidden_act": "gelu",
        "max_position_embeddings": 512, "type_vocab_size": 2, "layer_norm_eps": 1e-12,
    },
    only=keys.HUGGING_FACE_ONLY | {
        "is_decoder": (False, None), "is_causal": (False, None),
        "position_embedding_type": ("absolute", None),
    },
    ignored=keys.HUGGING_FACE_IGNORED | {"tie_word_embeddings"},  # there is no output layer
)  # fmt: skip
_MAPS = {
    "attn.q": "attention.self.query",
    "attn.k": "attention.self.key",
    "attn.v": "attention.self.value",
    "attn.o": "attention.output.dense",
    "mlp.in": "intermediate.dense",
    "mlp.out": "output.dense",
}
_NORMS = {"ln_1": "attention.output.LayerNorm", "ln_2": "output.LayerNorm"}


def layout(fields: Mapping[str, Any]) -> Layout:
    """Return the table from this library's array names to Hugging Face's names."""
    part, rows = "encoder.layer.{b}.", []
    for ours, theirs in _MAPS.items():
        rows.append(Row(ours, f"{part}{theirs}.weight", transposed=True))
        rows.append(Row(f"{ours}.bias", f"{part}{theirs}.bias"))
    for ours, theirs in _NORMS.items():
        rows.append(Row(f"{ours}.gain", f"{part}{theirs}.weight"))
        rows.append(Row(f"{ours}.bias", f"{part}{theirs}.bias"))
    ends = (
        Row("wte", "embeddings.word_embeddings.weight"),
        Row("wpe", "embeddings.position_embeddings.weight"),
        Row("wtt", "embeddings.token_type_embeddings.weight"),
        Row("ln_e.gain", "embeddings.LayerNorm.weight"),
        Row("ln_e.bias", "embeddings.LayerNorm.bias"),
    )
    return Layout(ends, tuple(rows))


def num_blocks(fields: Mapping[str, Any]) -> int:
    """Return the number of blocks."""
    return keys.size(keys.read(fields, KEYS, kind="bert"), "num_hidden_layers")


def sizes(fields: Mapping[str, Any]) -> dict[str, tuple[str, int, int]]:
    """Return the configured sizes that `layout.check_sizes` compares with the arrays."""
    values = keys.read(fields, KEYS, kind="bert")
    return {
        "vocab_size": ("wte", 0, keys.size(values, "vocab_size")),
        "hidden_size": ("wte", 1, keys.size(values, "hidden_size")),
        "max_position_embeddings": ("wpe", 0, keys.size(values, "max_position_embeddings")),
        "type_vocab_size": ("wtt", 0, keys.size(values, "type_vocab_size")),
        "intermediate_size": ("mlp.in", 1, keys.size(values, "intermediate_size")),
    }


def settings(fields: Mapping[str, Any]) -> Settings:
    """Return the `Settings` that correspond to the fields of a ``BertConfig`` (Hugging Face).

    Raises:
      ValueError: a key or a value is not supported.
    """
    values = keys.read(fields, KEYS, kind="bert")
    activation = checks.choice("hidden_act", values["hidden_act"], ACTIVATIONS)
    return make_settings(
        vocab_size=keys.size(values, "vocab_size"),
        width=keys.size(values, "hidden_size"),
        num_blocks=keys.size(values, "num_hidden_layers"),
        num_heads=keys.size(values, "num_attention_heads"),
        hidden_width=keys.size(values, "intermediate_size"),
        max_length=keys.size(values, "max_position_embeddings"),
        norm_eps=checks.number("layer_norm_eps", values["layer_norm_eps"], low=0),
        activation=ACTIVATIONS[activation],
        causal=False,
        post_norm=True,
        states=True,
        token_types=keys.size(values, "type_vocab_size"),
        embedding_norm=True,
    )


def fields(settings: Settings) -> dict[str, Any]:
    """Return the fields of the ``BertConfig`` (Hugging Face) that corresponds to `settings`.

    Raises:
      ValueError: BERT cannot have these settings; the error message names the first wrong setting.
    """
    s = settings
    plain = plain_fields(
        s, causal=False, post_norm=True, states=True, token_types=s.token_types, embedding_norm=True
    )
    check_kind(s, "BERT", plain)
    return {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "vocab_size": s.vocab_size,
        "hidden_size": s.width,
        "num_hidden_layers": s.num_blocks,
        "num_attention_heads": s.num_heads,
        "intermediate_size": s.hidden_width,
        "hidden_act": WRITTEN_ACTIVATIONS[s.activation],
        "max_position_embeddings": s.max_length,
        "type_vocab_size": s.token_types,
        "layer_norm_eps": s.norm_eps,
    }
