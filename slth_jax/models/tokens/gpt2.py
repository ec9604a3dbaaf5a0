"""GPT-2's tokenizer, read from the two files of its first release with the library tiktoken."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from slth_jax import storage


class BytePairs:
    """GPT-2's tokenizer from ``encoder.json`` and ``vocab.bpe``."""

    start = 50256  # <|endoftext|>
    stop = frozenset({start})

    def __init__(self, folder: Path):
        """Read ``encoder.json`` and ``vocab.bpe`` in `folder`.

        Raises:
          CheckpointError: a file is missing, or the two files are not GPT-2's vocabulary.
        """
        try:
            import tiktoken
            from tiktoken.load import data_gym_to_mergeable_bpe_ranks
        except ModuleNotFoundError as error:
            message = 'GPT-2\'s tokenizer needs tiktoken: pip install "slth-jax[experiments]"'
            raise ModuleNotFoundError(message) from error
        merges, ids = folder / "vocab.bpe", folder / "encoder.json"
        # tiktoken caches files by path, and uses the cached copy unless the files' hashes are
        # given.
        merges_hash, ids_hash = (
            hashlib.sha256(storage.read_bytes(path)).hexdigest() for path in (merges, ids)
        )
        pattern = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
        try:
            ranks = data_gym_to_mergeable_bpe_ranks(
                str(merges),
                str(ids),
                vocab_bpe_hash=merges_hash,
                encoder_json_hash=ids_hash,
            )
            self._encoding = tiktoken.Encoding(
                "gpt2-files",
                pat_str=pattern,
                mergeable_ranks=ranks,
                special_tokens={"<|endoftext|>": self.start},
                explicit_n_vocab=self.start + 1,
            )
        except Exception as error:  # tiktoken raises errors of many types
            line = f"{folder} has no vocabulary of GPT-2: vocab.bpe and encoder.json"
            raise storage.Damaged(f"{line} are damaged or do not belong together") from error

    def encode(self, text: str) -> list[int]:
        """Return the tokens of `text`; for an empty text, return the end-of-text token."""
        return self._encoding.encode_ordinary(text) or [self.start]

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of `tokens`."""
        return self._encoding.decode(list(tokens))
