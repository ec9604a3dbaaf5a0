"""Convert the tokenizer inside a GGUF file to the files of a Hugging Face folder."""

import json
import tempfile
from pathlib import Path
from typing import Any

from slth_jax import checks
from slth_jax.models.tokens.folder import FolderTokenizer
from slth_jax.models.weights.gguf import tokenizer_fields
from slth_jax.storage import Damaged

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_DIGITS = {"type": "Digits", "individual_digits": True}


def _split(pattern: str) -> list[dict[str, Any]]:
    """Return the pre-tokenizer steps that split a text by a pattern, and then into bytes."""
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
    return [split | {"invert": False}, _BYTES | {"use_regex": False}]


# Maps llama.cpp's name of a pattern to the steps that precede the merges.
_STEPS: dict[str, list[dict[str, Any]]] = {
    "default": [_BYTES],
    "gpt-2": [_BYTES],
    "smollm": [_DIGITS, _BYTES],
    "llama-bpe": _split(_LLAMA3),
    "llama3": _split(_LLAMA3),
    "qwen2": _split(_LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")),
}
_CONTROL, _USER = 3, 4  # types of tokens that are not made by merges


def open_gguf(path: Path) -> FolderTokenizer:
    """Return the tokenizer in a GGUF file; see `folder_files` for the errors."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in folder_files(path).items():
            (Path(folder) / name).write_bytes(content)
        return FolderTokenizer(Path(folder), name=str(path))


def folder_files(path: Path) -> dict[str, bytes]:
    """Return the files of a Hugging Face tokenizer, as a dict from file name to bytes.

    Raises:
      ValueError: the tokenizer is not of the supported type (byte-pair merges).
      CheckpointError: the file is missing or damaged.
    """
    prefix = "tokenizer.ggml."
    fields = tokenizer_fields(path)
    values = {n.removeprefix(prefix): v for n, v in fields.items() if n.startswith(prefix)}
    checks.choice("tokenizer.ggml.model", values.get("model"), ("gpt2",))
    steps = _STEPS[checks.choice("tokenizer.ggml.pre", values.get("pre", "default"), _STEPS)]
    if not isinstance(values.get("tokens"), list) or not isinstance(values.get("merges"), list):
        raise Damaged(f"{path} is damaged: its tokenizer has no tokens or no merges")
    tokens: list[str] = values["tokens"]
    kinds = values.get("token_type") or [1] * len(tokens)
    added = [
        {"id": i, "content": token, "special": kind == _CONTROL, "single_word": False}
        | {"lstrip": False, "rstrip": False, "normalized": False}
        for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in (_CONTROL, _USER)
    ]
    start = values.get("bos_token_id")
    tokenizer = {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "decoder": _BYTES,
        "model": {
            "type": "BPE",
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [merge.split(" ", 1) for merge in values["merges"]],
        },
    }
    if values.get("add_bos_token") and start is not None:
        piece = [{"SpecialToken": {"id": tokens[start], "type_id": 0}}]
        text, second = ({"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB"))
        tokenizer["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [*piece, text],
            "pair": [*piece, text, second],
            "special_tokens": {
                tokens[start]: {"id": tokens[start], "ids": [start], "tokens": [tokens[start]]}
            },
        }
    config: dict[str, Any] = {}
    for name in ("bos", "eos"):
        if f"{name}_token_id" in values:
            config[f"{name}_token"] = tokens[values[f"{name}_token_id"]]
    if isinstance(fields.get("tokenizer.chat_template"), str):
        config["chat_template"] = fields["tokenizer.chat_template"]
    ends = [values[name] for name in ("eos_token_id", "eot_token_id") if name in values]
    contents = {
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": config,
        "generation_config.json": {"eos_token_id": ends},
    }
    return {
        name: json.dumps(value, ensure_ascii=False).encode() for name, value in contents.items()
    }
