"""The files of a sentence encoder: texts to padded tokens, and the pooling of their states."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from slth_jax import checks
from slth_jax.models.tokens.folder import FolderTokenizer, read_object

# The files of the library sentence-transformers that change an embedding.
FILES = ("sentence_bert_config.json", "1_Pooling/config.json", "modules.json")
_POOLINGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "first"}


class Batch(NamedTuple):
    """Texts as tokens of one length; `kept` is False at padding."""

    tokens: Int[np.ndarray, "n t"]
    kept: Bool[np.ndarray, "n t"]


class Sentences:
    """The tokenizer of a folder for texts that are embedded, with the folder's pooling.

    Attributes:
      length: the most tokens of a text; longer texts are cut.
      pooling: 'mean' or 'first', see `models.embeddings`.
      normalise: whether embeddings are divided by their norm.
    """

    def __init__(self, folder: Path, max_length: int):
        """Read the files of the folder; `max_length` is the longest text of the model.

        Raises:
          ValueError: a pooling that is not supported.
          CheckpointError: a file is missing or damaged.
        """
        self._tokenizer = FolderTokenizer(folder)
        stated = read_object(folder / FILES[0]).get("max_seq_length")
        self.length = min(max_length, stated) if isinstance(stated, int) else max_length
        pooling = read_object(folder / FILES[1])
        modes = [name for name in pooling if name.startswith("pooling_mode_") and pooling[name]]
        if modes:
            checks.choice("pooling", modes[0], _POOLINGS)
            if len(modes) > 1:
                raise checks.fail("pooling", "one mode", ", ".join(modes))
        self.pooling = _POOLINGS[modes[0]] if modes else "mean"
        # A list of steps without a normalisation leaves embeddings as they are.
        steps = folder / FILES[2]
        self.normalise = not steps.exists() or "Normalize" in steps.read_text(errors="replace")

    def batch(self, texts: Sequence[str]) -> Batch:
        """Return the tokens of `texts`, each with the special tokens, filled up with padding.

        Raises:
          ValueError: no text.
        """
        if not texts:
            raise checks.fail("texts", "at least one text", "none")
        rows = self._tokenizer.encode_texts(texts, self.length)
        longest = max(1, *map(len, rows))
        tokens = np.zeros((len(rows), longest), np.int32)
        kept = np.zeros(tokens.shape, bool)
        for i, row in enumerate(rows):
            tokens[i, : len(row)] = row
            kept[i, : len(row)] = True
        return Batch(tokens, kept)
