"""GPT-2's tokenizer from its two files: whole, damaged, missing."""

import json

import pytest
from refusals import refusals

from slth_jax import storage
from slth_jax.models import tokens

pytest.importorskip("tiktoken")

# GPT-2's alphabet of bytes, the printable ones first, then a few merges of its kind.
PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
HIDDEN = [byte for byte in range(256) if byte not in PRINTABLE]
LETTERS = [chr(byte) for byte in PRINTABLE] + [chr(256 + i) for i in range(len(HIDDEN))]
MERGES = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o")]


@pytest.fixture
def folder(tmp_path):
    words = LETTERS + [a + b for a, b in MERGES]
    # Filled up to the published size: tiktoken wants every number up to the last.
    merges = list(MERGES)
    for a in LETTERS:
        for b in LETTERS:
            if len(words) < tokens.BytePairs.start and a + b not in ("he", "ll"):
                merges.append((a, b))
                words.append(a + b)
    write(tmp_path, merges, words)
    return tmp_path


def write(folder, merges, words):
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (folder / "vocab.bpe").write_text("\n".join(lines) + "\n")
    ids = {word: i for i, word in enumerate(words)} | {"<|endoftext|>": tokens.BytePairs.start}
    (folder / "encoder.json").write_text(json.dumps(ids))


def test_it_merges_and_gives_back_any_text(folder):
    pair = tokens.open_tokenizer(folder)
    assert pair.encode("hello") == [259]
    for text in ("hello  world, 12 — <|endoftext|>\n", "\x00\t"):
        assert pair.decode(pair.encode(text)) == text
    assert pair.encode("") == [50256]
    assert 50256 not in pair.encode("<|endoftext|>"), "of a text that holds those letters"


def test_a_file_that_was_changed_is_read_again(folder):
    tokens.BytePairs(folder)
    path = folder / "encoder.json"
    path.write_text(path.read_text().replace('"hello": 259', '"hallo": 259'))
    with pytest.raises(storage.CheckpointError, match="damaged or do not belong together"):
        tokens.BytePairs(folder)


@pytest.mark.parametrize("name", ["vocab.bpe", "encoder.json"])
@pytest.mark.parametrize("damage", ["short", "empty", "binary", "list"])
def test_damaged_files_are_one_line(folder, name, damage):
    path = folder / name
    data = path.read_bytes()
    path.write_bytes(
        {"short": data[: len(data) // 2], "empty": b"", "binary": b"\xff\x00\xfe", "list": b"[1]"}[
            damage
        ]
    )
    with pytest.raises(storage.CheckpointError) as error:
        tokens.open_tokenizer(folder)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


def test_missing_files_are_one_line(folder):
    (folder / "vocab.bpe").unlink()
    with refusals(r"^tokenizer must be a folder with vocab\.bpe"):
        tokens.open_tokenizer(folder)
    with pytest.raises(storage.CheckpointError, match=r"vocab\.bpe"):
        tokens.BytePairs(folder)
