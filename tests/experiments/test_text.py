import os
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from refusals import refusals

from experiments.language import text

SHARED = Path(os.environ.get("SLTH_DATA", Path(__file__).parents[3] / "shared" / "data"))
needs_data = pytest.mark.skipif(
    not (SHARED / "wikitext-2").is_dir(), reason="WikiText is not here (set SLTH_DATA)"
)
LINE = " = Title = \n \n the cat 's hat , 12 mice — and 3.5 dogs \n \n  twice  spaced \n"


@pytest.fixture
def folder(tmp_path):
    for split, times in (("train", 40), ("valid", 5), ("test", 5)):
        path = tmp_path / "data" / "wikitext-2" / f"{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(LINE * times)
    return tmp_path


def load(folder, **options):
    return text.load(str(folder / "data"), cache=str(folder / "cache"), **options)


def test_bytes_and_their_cache(folder):
    corpus = load(folder)
    assert bytes(corpus.train.astype(np.uint8)).decode() == LINE * 40
    assert (corpus.vocab_size, corpus.train.dtype) == (256, np.uint16)
    files = sorted((folder / "cache").iterdir())
    times = [file.stat().st_mtime_ns for file in files]
    again = load(folder)
    assert [file.stat().st_mtime_ns for file in files] == times
    np.testing.assert_array_equal(corpus.train, again.train)


@pytest.mark.parametrize("damage", ["truncated", "changed", "note"])
def test_a_damaged_cache_is_made_again(folder, damage):
    whole = np.array(load(folder).train)
    for file in (folder / "cache").glob("*.json" if damage == "note" else "*.bin"):
        data = bytearray(file.read_bytes())
        if damage == "changed":
            data[10] ^= 1
        else:
            del data[len(data) // 2 :]
        file.write_bytes(data)
    np.testing.assert_array_equal(load(folder).train, whole)


def test_a_changed_text_has_other_tokens(folder):
    load(folder)
    (folder / "data" / "wikitext-2" / "train.txt").write_text("other \n" * 30)
    assert bytes(load(folder).train.astype(np.uint8)) == b"other \n" * 30


def test_missing_and_truncated_texts(folder, monkeypatch):
    path = folder / "data" / "wikitext-2" / "train.txt"
    path.write_bytes(path.read_bytes()[:-7])
    with refusals(r"train\.txt, which ends in the middle of a line"):
        load(folder)
    path.write_bytes(b"\xff\xfe \n")
    with refusals(r"^data must be texts in UTF-8, got .*train\.txt"):
        load(folder)
    path.write_bytes(b"")
    with refusals(r"train\.txt, which is empty"):
        load(folder)
    path.unlink()
    with refusals(r"^data must be a folder with wikitext-2/train\.txt"):
        load(folder)
    with refusals(r"^data must be .*nowhere, which is not there"):
        text.load(str(folder / "nowhere"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with refusals(r"needs the datasets library"):
        text.load("hub:wikitext-2-v1", cache=str(folder / "cache"))


def test_the_hub_gives_the_same_text(folder, monkeypatch):
    """The hub stores one line per row, and an empty line as an empty string."""
    lines = (LINE * 5).splitlines(keepends=True)
    rows = [{"text": "" if line == " \n" else line} for line in lines]
    hub = types.SimpleNamespace(
        load_dataset=lambda path, name: {"train": rows, "validation": rows, "test": rows}
    )
    monkeypatch.setitem(sys.modules, "datasets", hub)
    corpus = text.load("hub:wikitext-2-v1", cache=str(folder / "cache"))
    assert bytes(corpus.valid.astype(np.uint8)).decode() == LINE * 5


def test_batches_are_a_function_of_seed_and_step():
    tokens = np.arange(1000, dtype=np.uint16)
    options = {"rows": 4, "length": 16}
    steps = text.steps_per_epoch(tokens, **options)
    assert steps == 15  # 62 whole windows, one kept for the offset
    epoch = np.stack([text.batch(tokens, seed=3, step=i, **options) for i in range(steps)])
    assert epoch.shape == (15, 4, 17) and epoch.dtype == np.int32
    np.testing.assert_array_equal(np.diff(epoch, axis=-1), 1)
    starts = np.sort(epoch[..., 0].reshape(-1))
    assert len(np.unique(starts)) == 60 and len(np.unique(starts % 16)) == 1
    for step in (0, 7, 15, 40):
        first, second = (text.batch(tokens, seed=3, step=step, **options) for _ in range(2))
        np.testing.assert_array_equal(first, second)
    other = text.batch(tokens, seed=4, step=0, **options)
    later = text.batch(tokens, seed=3, step=15, **options)
    assert not np.array_equal(other, epoch[0]) and not np.array_equal(later, epoch[0])
    with refusals(r"^data must be a text of at least 4097 tokens"):
        text.batch(tokens, seed=0, step=0, rows=63, length=64)


def test_windows_cover_the_text():
    tokens = np.arange(101, dtype=np.uint16)
    every = text.windows(tokens, rows=0, length=10)
    np.testing.assert_array_equal(every[:, 0], np.arange(10) * 10)
    np.testing.assert_array_equal(text.windows(tokens, rows=3, length=10)[:, 0], [0, 30, 60])
    with refusals(r"^data must be a text of more than 101 tokens"):
        text.windows(tokens, rows=1, length=101)


def test_unigram_entropy():
    train = np.array([0, 0, 1], np.uint16)  # counts plus one: 3, 2, 1 of 6
    expected = -(np.log(3 / 6) + np.log(1 / 6)) / 2
    assert text.unigram_entropy(train, np.array([0, 2], np.uint16), 3) == pytest.approx(expected)


@needs_data
def test_gpt2_tokens_are_the_published_ones(tmp_path):
    tiktoken = pytest.importorskip("tiktoken")
    assert tiktoken
    encode = text.encoder("gpt2", SHARED)
    assert encode("Hello world") == [15496, 995]
    raw = (SHARED / "wikitext-2" / "valid.txt").read_text()
    whole = encode(raw)
    assert len(whole) == 258_659
    cut = [token for piece in text.pieces(raw, 20_000) for token in encode(piece)]
    assert cut == whole
    assert [t for piece in text.pieces(LINE * 9, 5) for t in encode(piece)] == encode(LINE * 9)


def test_damaged_tokenizer_files(folder):
    pytest.importorskip("tiktoken")
    broken = folder / "data" / "gpt2-bpe"
    broken.mkdir()
    (broken / "vocab.bpe").write_text("#version\nb c\n")
    (broken / "encoder.json").write_text("{}")
    with refusals(r"^data/gpt2-bpe must be GPT-2's two files, got"):
        load(folder, tokenizer="gpt2")
