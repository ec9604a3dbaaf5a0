"""The tokenizer of llama2.c (Karpathy)."""

import itertools
import math
import os
import re
import struct
from collections.abc import Iterable
from typing import NamedTuple

from slth_jax import checks, storage

_BYTE = re.compile(rb"<0x[0-9A-Fa-f]{2}>")


class Tokenizer(NamedTuple):
    """A vocabulary of byte strings (pieces), each with a score that orders the merges.

    Token 1 begins a text and also ends it. Tokens 3 to 258 are single bytes.
    """

    pieces: tuple[bytes, ...]
    scores: tuple[float, ...]
    start: int = 1

    def encode(self, text: str) -> list[int]:
        """Return the start token and the tokens of `text`; the highest score is merged first.

        Raises:
          ValueError: the vocabulary contains neither a character of the text nor the character's
            bytes.
        """
        lookup = {piece: i for i, piece in reversed(list(enumerate(self.pieces)))}
        tokens = [self.start]
        for letter in f" {text}" if text else "":
            raw = letter.encode()
            bytewise = [byte + 3 for byte in raw]
            if raw not in lookup and max(bytewise) >= len(self.pieces):
                allowed = f"of characters that the tokenizer's {len(self.pieces)} pieces contain"
                raise checks.fail("text", allowed, repr(letter))
            tokens += [lookup[raw]] if raw in lookup else bytewise
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

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of `tokens` without start tokens and without the first space.

        A token outside the vocabulary is decoded as U+FFFD.
        """
        raw = b""
        for token in tokens:
            if token == self.start:
                continue
            piece = self.pieces[token] if token < len(self.pieces) else "\ufffd".encode()
            if _BYTE.fullmatch(piece):
                piece = bytes([int(piece[3:5], 16)])
            raw += piece
        return raw.decode("utf-8", "replace").removeprefix(" ")

    @property
    def stop(self) -> frozenset[int]:
        """Return the tokens that end a text."""
        return frozenset({self.start})

    def __repr__(self) -> str:
        """Return a short text with the size of the vocabulary."""
        return f"Tokenizer({len(self.pieces)} pieces)"


def load(path: str | os.PathLike[str]) -> Tokenizer:
    """Return the tokenizer in a llama2.c tokenizer file (``tok512.bin``).

    Raises:
      CheckpointError: the file is missing, or is not a llama2.c tokenizer.
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
    if not all(map(math.isfinite, scores)):
        raise storage.Damaged(f"{path} is damaged: scores that are not finite")
    return Tokenizer(tuple(pieces), tuple(scores))
