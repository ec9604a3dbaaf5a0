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
    large = ("{{ 'a' * 10 ** 9 }}", "{{ 9 ** 9999999 }}", "{{ '%999999999s' % 1 }}")
    for template in ("{{ ''.__class__.__mro__ }}", "{{ raise_exception('no') }}", "{% if", *large):
        (tmp_path / "chat_template.jinja").write_text(template)
        with refusals("the chat template must be one that renders"):
            tokens.open_tokenizer(tmp_path).chat("hello")
    (tmp_path / "chat_template.jinja").write_text("{{ '-' * 3 }}{{ 7 % 4 }}{{ '%s' % 'x' }}")
    assert tokens.open_tokenizer(tmp_path).chat("hello")
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


def write_gguf(path, trained, model="gpt2", pre="gpt-2", start=False):
    """Write a GGUF file of the tokenizer alone."""
    import gguf

    saved = json.loads(trained.to_str())
    vocabulary = saved["model"]["vocab"]
    names = sorted(vocabulary, key=vocabulary.get)
    special = {token["content"] for token in saved["added_tokens"]}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(names)
    writer.add_token_types([3 if name in special else 1 for name in names])
    writer.add_token_merges([" ".join(pair) for pair in saved["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(start)
    writer.add_chat_template(TEMPLATE)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def test_the_tokenizer_in_a_gguf_file(hugging_face, tmp_path):
    folder, fast, trained = hugging_face
    path = write_gguf(tmp_path / "model.gguf", trained)
    assert tokens.find(None, path, 300) == path
    tokenizer = tokens.open_tokenizer(path)
    for text in TEXTS[:-1]:
        assert tokenizer.encode(text) == fast(text)["input_ids"]
        assert tokenizer.decode(tokenizer.encode(text)) == fast.decode(
            tokenizer.encode(text), skip_special_tokens=True
        )
    assert tokenizer.stop == {2} and tokenizer.start == 0
    assert tokenizer.chat("hello") == tokens.open_tokenizer(folder).chat("hello")
    (tmp_path / "out").mkdir()
    tokens.copy(path, tmp_path / "out")
    copied = tokens.open_tokenizer(tmp_path / "out")
    assert copied.chat("hello") == tokenizer.chat("hello") and copied.stop == {2}
    digits = tokens.open_tokenizer(write_gguf(tmp_path / "d.gguf", trained, pre="smollm"))
    assert digits.decode(digits.encode("a 12")) == "a 12"
    first = tokens.open_tokenizer(write_gguf(tmp_path / "s.gguf", trained, start=True))
    assert first.encode("hello") == [0, *tokenizer.encode("hello")]


def test_another_tokenizer_in_a_gguf_file_is_refused(hugging_face, tmp_path):
    _, _, trained = hugging_face
    pieces = write_gguf(tmp_path / "pieces.gguf", trained, model="llama")
    with refusals("tokenizer.ggml.model must be one of 'gpt2', got 'llama'"):
        tokens.open_tokenizer(pieces)
    with refusals("tokenizer.ggml.pre must be one of"):
        tokens.open_tokenizer(write_gguf(tmp_path / "pre.gguf", trained, pre="viking"))
    (tmp_path / "out").mkdir()
    tokens.copy(pieces, tmp_path / "out")  # a ticket can do without
    assert not list((tmp_path / "out").iterdir())


def steps(*names):
    """Return the list of modules of sentence-transformers."""
    paths = ("", "1_Pooling", "2_Normalize")
    kinds = (f"sentence_transformers.models.{name}" for name in names)
    return json.dumps([{"type": t, "path": p} for t, p in zip(kinds, paths, strict=False)])


@pytest.mark.parametrize(
    "name, content, line",
    [
        ("modules.json", steps("Transformer", "Pooling", "Dense"), "modules.json must be Transf"),
        ("modules.json", steps("Transformer"), "modules.json must be Transformer, Pooling"),
        ("modules.json", '[{"type": "Transformer"}, {"type": "Pooling"}]', "a pooling in 1_Pool"),
        ("sentence_bert_config.json", '{"do_lower_case": true}', "do_lower_case must be false"),
        ("sentence_bert_config.json", '{"max_seq_length": -1}', "max_seq_length must be an int"),
        ("1_Pooling/config.json", '{"pooling_mode": "cls"}', "'pooling_mode' must be absent"),
        ("config_sentence_transformers.json",
         '{"prompts": {"query": "query: "}, "default_prompt_name": "query"}',
         "default_prompt_name must be null"),
    ],
)  # fmt: skip
def test_steps_of_an_encoder_are_used_or_refused(name, content, line, hugging_face, tmp_path):
    tokens.copy(hugging_face[0], tmp_path / "from")
    (tmp_path / "from" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "from" / name).write_text(content)
    tokens.copy(tmp_path / "from", tmp_path)  # the folder of a ticket has the same files
    with refusals(line):
        tokens.Sentences(tmp_path, 9)
    (tmp_path / name).write_text(steps("Transformer", "Pooling") if "modules" in name else "{}")
    tokens.Sentences(tmp_path, 9)


def test_sentences_are_cut_and_padded(hugging_face, tmp_path):
    folder, fast, _ = hugging_face
    tokens.copy(folder, tmp_path)
    sentences = tokens.Sentences(tmp_path, 9)
    texts = ["the lion said hello to the end of the turn and the turn", "the lion"]
    rows, kept = sentences.batch(texts)
    assert rows.shape == kept.shape == (2, 9) and kept[0].all()
    ids = fast(texts[1])["input_ids"]
    assert rows[1, : len(ids)].tolist() == ids and kept[1].sum() == len(ids)
    assert (sentences.length, sentences.pooling, sentences.normalise) == (9, "mean", True)
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling/config.json").write_text('{"pooling_mode_cls_token": true}')
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 4}')
    (tmp_path / "modules.json").write_text(steps("Transformer", "Pooling"))
    sentences = tokens.Sentences(tmp_path, 9)
    assert (sentences.length, sentences.pooling, sentences.normalise) == (4, "first", False)
    (tmp_path / "1_Pooling/config.json").write_text('{"pooling_mode_max_tokens": true}')
    with refusals("pooling must be one of 'pooling_mode_mean_tokens', 'pooling_mode_cls_token'"):
        tokens.Sentences(tmp_path, 9)
    with refusals("texts must be at least one text"):
        sentences.batch([])
