"""RoBERTa as Hugging Face stores it, `RobertaModel`: BERT with shifted positions.

Position i uses row ``pad_token_id + 1 + i`` of the position table; the rows before are not read.
The token `pad_token_id` is padding, which no token attends to. The library `transformers` skips
padding when it counts positions, so padding must follow the text, as the tokenizers of
`transformers` write it.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from slth_jax import checks
from slth_jax.models.settings import Settings
from slth_jax.models.weights import bert, keys
from slth_jax.models.weights.layout import Layout

PREFIX = "roberta."
# The output layer of a masked language model has no effect on the states.
IGNORED = re.compile(
    r"(pooler\.dense\.(weight|bias)|embeddings\.(position_ids|token_type_ids)|lm_head\..*)$"
)
KEYS = bert.KEYS._replace(used={**bert.KEYS.used, "vocab_size": 50265, "pad_token_id": 1})


def layout(fields: Mapping[str, Any]) -> Layout:
    """Return the table from this library's array names to Hugging Face's names."""
    table = bert.layout(fields)
    skipped = _skipped(keys.read(fields, KEYS, kind="roberta"))
    ends = (row._replace(skipped=skipped) if row.ours == "wpe" else row for row in table.ends)
    return Layout(tuple(ends), table.block)


def num_blocks(fields: Mapping[str, Any]) -> int:
    """Return the number of blocks."""
    return bert.num_blocks(_of_bert(fields))


def sizes(fields: Mapping[str, Any]) -> dict[str, tuple[str, int, int]]:
    """Return the configured sizes that `layout.check_sizes` compares with the arrays."""
    return bert.sizes(_of_bert(fields))


def settings(fields: Mapping[str, Any]) -> Settings:
    """Return the `Settings` that correspond to the fields of a ``RobertaConfig`` (Hugging Face).

    Raises:
      ValueError: a key or a value is not supported.
    """
    skipped = _skipped(keys.read(fields, KEYS, kind="roberta"))
    whole = bert.settings(_of_bert(fields))
    if whole.max_length <= skipped:
        allowed = f"above pad_token_id + 1 = {skipped}"
        raise checks.fail("max_position_embeddings", allowed, whole.max_length)
    return dataclasses.replace(whole, max_length=whole.max_length - skipped, pad_token=skipped - 1)


def fields(settings: Settings) -> dict[str, Any]:
    """Return the fields of the ``RobertaConfig`` (Hugging Face) that corresponds to `settings`.

    Raises:
      ValueError: RoBERTa cannot have these settings; the error message names the first wrong
        setting.
    """
    pad = checks.integer("pad_token", settings.pad_token, low=0)
    written = bert.fields(dataclasses.replace(settings, pad_token=None))
    return written | {
        "architectures": ["RobertaModel"],
        "model_type": "roberta",
        "max_position_embeddings": settings.max_length + pad + 1,
        "pad_token_id": pad,
    }


def _of_bert(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return `fields` in the form that `bert` reads; absent keys get RoBERTa's defaults."""
    return {**fields, **keys.read(fields, KEYS, kind="roberta")}


def _skipped(values: Mapping[str, Any]) -> int:
    return checks.integer("pad_token_id", values["pad_token_id"], low=0) + 1
