"""Text to tokens and back, with the tokenizer files that models come with."""

import hashlib
import itertools
import os
import struct
from pathlib import Path
from typing import NamedTuple

from slth_jax import checks, storage


class Tokenizer(NamedTuple):
    """The tokenizer of llama2.c: pieces of bytes with scores, merged by score.

    Token 1 begins a text and ends one; tokens 3 to 258 are single bytes.
    """

    pieces: tuple[bytes, ...]
    scores: tuple[float, ...]
    start: int = 1

    def encode(self, text: str) -> list[int]:
        """Return the tokens of `text`, the start token first; best-scored neighbours are merged."""
        lookup = {piece: i for i, piece in reversed(list(enumerate(self.pieces)))}
        tokens = [self.start]
        for letter in f" {text}" if text else "":
            raw = letter.encode()
            tokens += [lookup[raw]] if raw in lookup else [byte + 3 for byte in raw]
        while True:
            merges = [
                (self.scores[merged], -i, merged)
                for i, (a, b) in enumerate(itertools.pairwise(tokens))
                if (merged := lookup.get(self.pieces[a] + self.pieces[b])) is not None
            ]
            if not merges:
                return tokens
            _, place, merged = max(merges)
            tokens[-place : -place + 2] = [merged]

    def decode(self, tokens) -> str:
        """Return the text of `tokens`; the start token is left out, as is the first space."""
        raw = b""
        for token in tokens:
            piece = self.pieces[token]
            if token == self.start:
                continue
            if len(piece) == 6 and piece.startswith(b"<0x"):
                piece = bytes([int(piece[3:5], 16)])
            raw += piece
        return raw.decode("utf-8", "replace").removeprefix(" ")

    def __repr__(self) -> str:
        """Return the number of pieces."""
        return f"Tokenizer({len(self.pieces)} pieces)"


def load(path: str | os.PathLike[str]) -> Tokenizer:
    """Return the tokenizer in a llama2.c tokenizer file (``tok512.bin``).

    Raises:
      CheckpointError: the file is missing or no such file.
    """
    data = storage.read_bytes(path)
    pieces: list[bytes] = []
    scores: list[float] = []
    try:
        at = 4
        while at < len(data):
            score, length = struct.unpack_from("fi", data, at)
            piece = data[at + 8 : at + 8 + length]
            if length < 0 or len(piece) != length:
                raise struct.error
            pieces.append(piece)
            scores.append(score)
            at += 8 + length
    except struct.error as error:
        raise storage.Damaged(f"{path} is no llama2.c tokenizer, or cut short") from error
    if len(pieces) < 3:
        raise storage.Damaged(f"{path} is no llama2.c tokenizer, or cut short")
    return Tokenizer(tuple(pieces), tuple(scores))


class BytePairs:
    """GPT-2's tokenizer, from its two files, through tiktoken."""

    start = 50256  # <|endoftext|>

    def __init__(self, folder: Path):
        """Read ``encoder.json`` and ``vocab.bpe`` in `folder`.

        Raises:
          CheckpointError: a file is missing, or the two are no vocabulary of GPT-2's.
        """
        try:
            import tiktoken
            from tiktoken.load import data_gym_to_mergeable_bpe_ranks
        except ModuleNotFoundError as error:
            message = 'GPT-2\'s tokenizer needs tiktoken: pip install "slth-jax[experiments]"'
            raise ModuleNotFoundError(message) from error
        merges, ids = folder / "vocab.bpe", folder / "encoder.json"
        # tiktoken keeps copies by path, and takes them for the files unless told what these hold.
        of_merges, of_ids = (
            hashlib.sha256(storage.read_bytes(path)).hexdigest() for path in (merges, ids)
        )
        pattern = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
        try:
            ranks = data_gym_to_mergeable_bpe_ranks(
                str(merges),
                str(ids),
                vocab_bpe_hash=of_merges,
                encoder_json_hash=of_ids,
            )
            self._encoding = tiktoken.Encoding(
                "gpt2-files",
                pat_str=pattern,
                mergeable_ranks=ranks,
                special_tokens={"<|endoftext|>": self.start},
                explicit_n_vocab=self.start + 1,
            )
        except Exception as error:  # of many kinds, whatever it stumbled over
            line = f"{folder} holds no vocabulary of GPT-2's: vocab.bpe and encoder.json"
            raise storage.Damaged(f"{line} are damaged or do not belong together") from error

    def encode(self, text: str) -> list[int]:
        """Return the tokens of `text`; an empty one is the end-of-text token."""
        return self._encoding.encode_ordinary(text) or [self.start]

    def decode(self, tokens) -> str:
        """Return the text of `tokens`."""
        return self._encoding.decode(list(tokens))


def open_tokenizer(path: str | os.PathLike[str]) -> Tokenizer | BytePairs:
    """Return the tokenizer at `path`: a llama2.c file, or a folder with GPT-2's two files."""
    path = Path(path)
    if not path.is_dir():
        return load(path)
    if not (path / "vocab.bpe").exists() or not (path / "encoder.json").exists():
        raise checks.fail("tokenizer", "a folder with vocab.bpe and encoder.json", str(path))
    return BytePairs(path)


def find(
    given: str | os.PathLike[str] | None, beside: str | os.PathLike[str], vocab_size: int
) -> Path:
    """Return where the tokenizer of a model or a ticket is: as given, or beside it.

    Raises:
      ValueError: none was given and none is there.
    """
    if given is not None:
        return Path(given)
    place = Path(beside)
    folder = place if place.is_dir() else place.parent
    for name in ("tokenizer.bin", f"tok{vocab_size}.bin"):
        if (folder / name).is_file():
            return folder / name
    if (folder / "vocab.bpe").exists() and (folder / "encoder.json").exists():
        return folder
    raise checks.fail("--tokenizer", f"given, since none lies in {folder}", "none")
