"""Tokenizers from files: of GPT-2, of Hugging Face folders, none; whole, damaged, missing."""

import json

import pytest
import tokenizers
import transformers
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
    with refusals(r"^tokenizer must be a folder with tokenizer\.json or vocab\.json and merges"):
        tokens.open_tokenizer(folder)
    with pytest.raises(storage.CheckpointError, match=r"vocab\.bpe"):
        tokens.BytePairs(folder)


TEXTS = ["Hello there, lion!", " the  end\n", "é — 12", "<|end|> of a turn", ""]
TEMPLATE = (
    "{% for message in messages %}{{ '<|start|>' + message['role'] + '\\n' + message['content'] }}"
    "{{ '<|end|>\\n' }}{% endfor %}\n"
    "{% if add_generation_prompt %}{{ '<|start|>assistant\\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory):
    """Return a folder with a trained tokenizer and a chat template, as transformers saves it."""
    folder = tmp_path_factory.mktemp("tokenizer")
    trained = tokenizers.ByteLevelBPETokenizer()
    trained.train_from_iterator(
        ["the lion said hello to the end of the turn"] * 9, vocab_size=300, min_frequency=1,
        special_tokens=["<|endoftext|>", "<|start|>", "<|end|>"],
    )  # fmt: skip
    trained.save(str(folder / "trained.json"))
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "trained.json"), bos_token="<|endoftext|>",
        eos_token="<|end|>", chat_template=TEMPLATE,
    )  # fmt: skip
    fast.save_pretrained(folder)
    (folder / "config.json").write_text('{"eos_token_id": [0, 2]}')
    (folder / "trained.json").unlink()
    return folder, fast, trained


def test_a_folder_gives_the_tokens_of_transformers(hugging_face):
    folder, fast, _ = hugging_face
    tokenizer = tokens.open_tokenizer(folder)
    for text in TEXTS[:-1]:
        numbers = tokenizer.encode(text)
        assert numbers == fast(text)["input_ids"]
        assert tokenizer.decode(numbers) == fast.decode(numbers, skip_special_tokens=True)
    assert tokenizer.encode("") == [0]
    assert tokenizer.stop == {0, 2}


def test_a_chat_is_rendered_as_transformers_does(hugging_face):
    folder, fast, _ = hugging_face
    numbers = tokens.open_tokenizer(folder).chat("Is the lion {{ here }}?")
    messages = [{"role": "user", "content": "Is the lion {{ here }}?"}]
    expected = fast.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert numbers == expected


def test_a_template_runs_in_a_sandbox(hugging_face, tmp_path):
    folder, _, _ = hugging_face
    tokens.copy(folder, tmp_path)
    for template in ("{{ ''.__class__.__mro__ }}", "{{ raise_exception('no') }}", "{% if"):
        (tmp_path / "chat_template.jinja").write_text(template)
        with refusals("the chat template must be one that renders"):
            tokens.open_tokenizer(tmp_path).chat("hello")
    (tmp_path / "chat_template.jinja").unlink()
    with refusals("--chat must be given only if .* has a chat template"):
        tokens.open_tokenizer(tmp_path).chat("hello")


def test_gpt2_by_vocabulary_and_merges(hugging_face, tmp_path):
    _, _, trained = hugging_face
    trained.save_model(str(tmp_path))
    tokenizer = tokens.open_tokenizer(tmp_path)
    theirs = transformers.GPT2Tokenizer.from_pretrained(tmp_path)
    for text in TEXTS[:3]:
        assert tokenizer.encode(text) == theirs(text)["input_ids"]
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.stop == {0}


def test_files_that_are_copied_make_the_same_tokenizer(hugging_face, tmp_path):
    folder, _, _ = hugging_face
    tokens.copy(folder, tmp_path)
    assert tokens.find(None, tmp_path / "ticket.safetensors", 300) == tmp_path
    copied, original = tokens.open_tokenizer(tmp_path), tokens.open_tokenizer(folder)
    assert copied.encode(TEXTS[0]) == original.encode(TEXTS[0])
    assert copied.stop == original.stop and copied.chat("hi") == original.chat("hi")


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", b'{"model": {"type": "BPE"}}'])
def test_a_damaged_tokenizer_json_is_one_line(content, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(storage.CheckpointError) as error:
        tokens.open_tokenizer(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_numbers_stand_in_for_a_tokenizer_that_is_not_there(tmp_path):
    assert tokens.find(None, tmp_path, 300) is None
    tokenizer = tokens.open_tokenizer(None)
    assert tokenizer.encode("5, 7 11") == [5, 7, 11]
    assert tokenizer.decode([5, 7, 11]) == "5 7 11"
    with refusals("--prompt must be token numbers"):
        tokenizer.encode("Once upon")
