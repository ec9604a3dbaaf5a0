"""Load text for language models, cache its tokens in memory-mapped files, and make batches.

The folder (option `data`) contains ``wikitext-2/train.txt, valid.txt, test.txt`` (or another corpus
with these files) and, for GPT-2's tokens, ``gpt2-bpe/encoder.json`` and ``vocab.bpe``. Each text is
tokenised once; its tokens are stored as uint16 in a cache file whose name contains the text's hash.
"""

import functools
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from slth_jax import checks, storage
from slth_jax.models import tokens as tokenizers
from slth_jax.storage import CheckpointError

SPLITS = ("train", "valid", "test")
VOCAB_SIZES = {"bytes": 256, "gpt2": 50257}
# GPT-2's tokeniser splits a text into parts before it forms tokens. It always splits at a newline
# before a line that starts with exactly one space, so cutting the text there changes no token.
_CUT = re.compile(r"\n(?= \S)")
_PIECE = 1 << 20


class Corpus(NamedTuple):
    """The tokens of the training, validation and test text, as uint16 arrays mapped from disk."""

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    vocab_size: int


def find(data: str = "") -> Path:
    """Return the folder of the texts: `data` if given, else $SLTH_DATA, ./data or ../shared/data.

    Raises:
      ValueError: the folder is missing; the message names the expected files.
    """
    given = data or os.environ.get("SLTH_DATA", "")
    beside = Path(__file__).parents[3] / "shared" / "data"
    places = [Path(given)] if given else [Path("data"), beside]
    for place in places:
        if place.is_dir():
            return place
    allowed = "a folder with wikitext-2/train.txt, valid.txt and test.txt (or set SLTH_DATA)"
    raise checks.fail("data", allowed, f"{places[0]}, which is not there")


def load(
    data: str = "", *, corpus: str = "wikitext-2", tokenizer: str = "bytes", cache: str = ""
) -> Corpus:
    """Return the tokens of a corpus; the first call tokenises it, later calls read the cache.

    Args:
      data: the folder of the texts, see `find`; or ``hub:NAME``, such as ``hub:wikitext-103-v1``,
        to fetch the texts with the library `datasets`.
      corpus: the corpus, a folder in `data`.
      tokenizer: 'bytes' (256 tokens) or 'gpt2' (50,257 tokens, byte-pair encoding).
      cache: the folder in which tokens are stored; empty for $SLTH_CACHE or ~/.cache/slth_jax.

    Raises:
      ValueError: a text is missing, empty or cut short.
    """
    checks.choice("tokenizer", tokenizer, VOCAB_SIZES)
    into = Path(cache or os.environ.get("SLTH_CACHE", "") or Path.home() / ".cache" / "slth_jax")
    if data.startswith("hub:"):
        root, corpus = into / "hub", data.removeprefix("hub:")
        _fetch(root / corpus, corpus)
    else:
        root = find(data)
    arrays = {
        split: _tokens(root / corpus / f"{split}.txt", tokenizer, root, into) for split in SPLITS
    }
    return Corpus(**arrays, vocab_size=VOCAB_SIZES[tokenizer])


def encoder(tokenizer: str, root: Path) -> Callable[[str], list[int]]:
    """Return the function that converts text to tokens.

    GPT-2's two files are read from ``root/gpt2-bpe``. If that folder is missing, the copy that
    tiktoken downloads is used.

    Raises:
      ValueError: the files are missing or damaged.
    """
    if tokenizer == "bytes":
        return lambda text: list(text.encode())
    folder = root / "gpt2-bpe"
    try:
        if folder.is_dir():
            return tokenizers.BytePairs(folder).encode
        import tiktoken
    except ModuleNotFoundError as error:
        raise ValueError("tokenizer 'gpt2' needs tiktoken: pip install tiktoken") from error
    except CheckpointError as error:
        raise checks.fail("data/gpt2-bpe", "GPT-2's two files", error) from error
    try:
        return tiktoken.get_encoding("gpt2").encode_ordinary
    except Exception as error:  # a download raises errors of many types
        allowed = "a folder with encoder.json and vocab.bpe for tokenizer 'gpt2'"
        raise checks.fail("data/gpt2-bpe", allowed, f"{folder}, which is not there") from error


def pieces(text: str, size: int = _PIECE) -> Iterator[str]:
    """Yield `text` in parts of about `size` characters; no token of GPT-2 crosses a cut."""
    begin = 0
    while begin < len(text):
        cut = _CUT.search(text, begin + size)
        end = cut.end() if cut else len(text)
        yield text[begin:end]
        begin = end


def batch(tokens: np.ndarray, *, seed: int, step: int, rows: int, length: int) -> np.ndarray:
    """Return the training batch of a step: int32 `[rows, length + 1]`.

    The batch depends on the text, sizes, seed and step alone, so a resumed run reads the batches
    that an uninterrupted run reads. In every epoch the text is cut into windows of `length` inputs,
    beginning at a random offset. The epoch uses all windows in random order and drops an incomplete
    last batch.

    Raises:
      ValueError: the text is shorter than one batch.
    """
    steps = steps_per_epoch(tokens, rows=rows, length=length)
    epoch, index = divmod(step, steps)
    starts = _order(seed, epoch, len(tokens), length)[index * rows : (index + 1) * rows]
    return tokens[starts[:, None] + np.arange(length + 1)[None]].astype(np.int32)


def steps_per_epoch(tokens: np.ndarray, *, rows: int, length: int) -> int:
    """Return the number of batches in one pass over the text.

    Raises:
      ValueError: the text is shorter than one batch.
    """
    steps = _windows(len(tokens), length) // rows
    if steps < 1:
        allowed = f"a text of at least {(rows + 1) * length + 1} tokens for batches of {rows} rows"
        raise checks.fail("data", allowed, f"{len(tokens)} tokens")
    return steps


def windows(tokens: np.ndarray, *, rows: int, length: int) -> np.ndarray:
    """Return `rows` evenly spaced windows of a validation text: int32 `[rows, length + 1]`.

    If the text has at most `rows` whole windows, or if `rows` is 0, all whole windows are returned.
    """
    whole = (len(tokens) - 1) // length
    if whole < 1:
        raise checks.fail("data", f"a text of more than {length} tokens", f"{len(tokens)} tokens")
    count = min(rows or whole, whole)
    starts = (np.arange(count) * whole // count) * length
    return tokens[starts[:, None] + np.arange(length + 1)[None]].astype(np.int32)


def unigram_entropy(train: np.ndarray, valid: np.ndarray, vocab_size: int) -> float:
    """Return the loss, in nats per token, of a model that always predicts the token frequencies.

    The loss is ``-mean log p`` over `valid`. Here p are the frequencies of tokens in `train` after
    1 is added to each token's count.
    """
    counts = np.bincount(train, minlength=vocab_size) + 1.0
    return float(-np.mean(np.log(counts / counts.sum())[valid]))


def _windows(size: int, length: int) -> int:
    # The number is one less than the number of windows in the text, so that the windows fit at
    # every offset.
    return (size - 1) // length - 1


@functools.lru_cache(maxsize=32)
def _order(seed: int, epoch: int, size: int, length: int) -> np.ndarray:
    draw = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    offset = int(draw.integers(length))
    return draw.permutation(_windows(size, length)) * length + offset


def _tokens(path: Path, tokenizer: str, root: Path, cache: Path) -> np.ndarray:
    """Return a text's tokens from the cache; write the cache if it is missing or damaged."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise checks.fail(
            "data", f"a folder with {path.parent.name}/{path.name}", f"{path}: {error.strerror}"
        ) from error
    if not raw.endswith(b"\n"):
        state = "is empty" if not raw else f"ends in the middle of a line after {len(raw)} bytes"
        raise checks.fail("data", "whole texts that end with a line", f"{path}, which {state}")
    name = f"{hashlib.sha256(raw).hexdigest()[:16]}-{tokenizer}"
    file, note = cache / f"{name}.bin", cache / f"{name}.json"
    known = _note(note)
    if known is None or not _whole(file, known):
        known = _write(file, note, raw, path, encoder(tokenizer, root))
    return np.memmap(file, np.uint16, "r", shape=(known["tokens"],))


def _write(file: Path, note: Path, raw: bytes, path: Path, encode) -> dict:
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise checks.fail(
            "data", "texts in UTF-8", f"{path}: {error.reason} at byte {error.start}"
        ) from error
    digest, count = hashlib.sha256(), 0
    storage.make_folder(file.parent)
    with storage.writing(file) as out:
        for piece in pieces(text):
            part = np.array(encode(piece), np.uint16)
            out.write(part.tobytes())
            digest.update(part.tobytes())
            count += len(part)
    known = {"tokens": count, "sha256": digest.hexdigest(), "text": path.name}
    storage.write_json(note, known)
    return known


def _note(note: Path) -> dict | None:
    try:
        known = storage.read_json(note)
    except CheckpointError:
        return None
    return known if isinstance(known, dict) and {"tokens", "sha256"} <= known.keys() else None


def _whole(file: Path, known: dict) -> bool:
    """Return whether a cache file has the size and the checksum that were recorded."""
    if not file.is_file() or file.stat().st_size != 2 * known["tokens"]:
        return False
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest() == known["sha256"]


def _fetch(folder: Path, name: str) -> None:
    """Fetch the texts of a WikiText corpus from the hub, unless `folder` contains the texts."""
    if all((folder / f"{split}.txt").is_file() for split in SPLITS):
        return
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise ValueError(
            "data 'hub:NAME' needs the datasets library: pip install datasets"
        ) from error
    try:
        parts = datasets.load_dataset("Salesforce/wikitext", name)
    except Exception as error:  # a download raises errors of many types
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise checks.fail(
            "data", "a WikiText of the hub that can be reached", f"hub:{name} ({reason})"
        ) from error
    storage.make_folder(folder)
    for split, theirs in zip(SPLITS, ("train", "validation", "test"), strict=True):
        lines = (row["text"] or " \n" for row in parts[theirs])
        storage.write_bytes(folder / f"{split}.txt", "".join(lines).encode())
