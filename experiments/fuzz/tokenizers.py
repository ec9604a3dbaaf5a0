"""Subjects: files of tokenizers and chat templates."""

import json
import random
import struct
from pathlib import Path
from typing import Any

from experiments.fuzz import mutations
from experiments.fuzz.subject import Subject
from slth_jax.models import tokens


def _write_tokenizer(folder: Path) -> None:
    """Write a llama2.c tokenizer and a Hugging Face tokenizer; their tokens are letters."""
    pieces = [b"<unk>", b"<s>", b"</s>", *(b"<0x%02X>" % byte for byte in range(256)), b"a", b"b"]
    data = struct.pack("<i", max(map(len, pieces)))
    for index, piece in enumerate(pieces):
        data += struct.pack("<fi", -float(index), len(piece)) + piece
    (folder / "tokenizer.bin").write_bytes(data)
    vocabulary = {chr(97 + i): i for i in range(13)} | {"ab": 13, "<s>": 14, "</s>": 15}
    whole: dict[str, Any] = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
        "normalizer": None, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None,
        "decoder": None,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": [["a", "b"]], "unk_token": None},
    }  # fmt: skip
    (folder / "hub").mkdir()
    (folder / "hub" / "tokenizer.json").write_text(json.dumps(whole))
    settings = {
        "eos_token": "</s>",
        "chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}",
    }
    (folder / "hub" / "tokenizer_config.json").write_text(json.dumps(settings))


def _change_tokenizer_json(rng: random.Random, folder: Path) -> None:
    """Change a tokenizer's JSON file or the JSON file of the tokenizer's configuration."""
    file = folder / "hub" / rng.choice(("tokenizer.json", "tokenizer_config.json"))
    file.write_bytes(mutations.json_text(rng, json.loads(file.read_text())))


_TEMPLATES = (
    "{% for m in messages %}{{ m.content }}", "{{ messages[9].content }}", "{{ ''.__class__ }}",
    "{{ raise_exception(3) }}", "{{ 'a' * 10 ** 10 }}", "{{ 10 ** 10 ** 10 }}",
    "{{ range(10 ** 9) | list }}",
    "{{ messages.append(1) }}", "{% include 'x' %}", "{{ cycler }}", "{{ messages | tojson }}",
    "{% for i in range(99999) %}a{% endfor %}", "{{ undefined.x.y }}", "{% if %}", "\x1b[31m", "",
    "{{ '%999999999s' % 1 }}", "{{ messages | map('upper') | list }}", "{{ bos_token + 1 }}",
)  # fmt: skip


def _change_template(rng: random.Random, folder: Path) -> None:
    """Change bytes of the chat template, or write another template."""
    file = folder / "hub" / "tokenizer_config.json"
    config = json.loads(file.read_text())
    if rng.random() < 0.6:
        template = rng.choice(_TEMPLATES)
    else:
        changed = mutations.change_bytes(rng, config["chat_template"].encode())
        template = changed.decode("utf-8", "replace")
    if rng.random() < 0.3:
        (folder / "hub" / "chat_template.jinja").write_text(template)
    else:
        file.write_text(json.dumps(config | {"chat_template": template}))


def _read_chat(folder: Path) -> Any:
    tokenizer = tokens.open_tokenizer(folder / "hub")
    assert isinstance(tokenizer, tokens.FolderTokenizer)
    return tokenizer.chat("abc")


_ENCODER: dict[str, Any] = {
    "sentence_bert_config.json": {"max_seq_length": 4, "do_lower_case": False},
    "1_Pooling/config.json": {"word_embedding_dimension": 8, "pooling_mode_mean_tokens": True},
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {
            "idx": 1,
            "name": "1",
            "path": "1_Pooling",
            "type": "sentence_transformers.models.Pooling",
        },
    ],
    "config_sentence_transformers.json": {"prompts": {}, "default_prompt_name": None},
}


def _write_encoder(folder: Path) -> None:
    _write_tokenizer(folder)
    for name, content in _ENCODER.items():
        (folder / "hub" / name).parent.mkdir(exist_ok=True)
        (folder / "hub" / name).write_text(json.dumps(content))


def _change_encoder(rng: random.Random, folder: Path) -> None:
    name = rng.choice(sorted(_ENCODER))
    (folder / "hub" / name).write_bytes(mutations.json_text(rng, _ENCODER[name]))


def _read_encoder(folder: Path) -> Any:
    sentences = tokens.Sentences(folder / "hub", 5)
    return sentences.batch(["abc", "a b"]), sentences.pooling, sentences.normalise


def _read_tokenizer(folder: Path) -> Any:
    texts = []
    for path in (folder / "tokenizer.bin", folder / "hub"):
        tokenizer = tokens.open_tokenizer(path)
        numbers = [int(token) for token in tokenizer.encode("abc")]
        texts.append((numbers, tokenizer.decode(numbers)))
    return texts


SUBJECTS: tuple[Subject, ...] = (
    Subject("tokenizer", _write_tokenizer, mutations.change_folder, _read_tokenizer, sealed=False),
    Subject("tokenizer.json", _write_tokenizer, _change_tokenizer_json, _read_tokenizer,
            sealed=False),
    Subject("sentence encoder", _write_encoder, _change_encoder, _read_encoder, sealed=False),
    Subject("chat template", _write_tokenizer, _change_template, _read_chat, sealed=False),
)  # fmt: skip
