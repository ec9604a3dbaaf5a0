"""Read a sentence encoder's tokenizer and pooling; convert texts to padded tokens."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from slth_jax import checks, storage
from slth_jax.models.tokens.folder import FolderTokenizer, read_object

# The files of a sentence-transformers folder that affect an embedding.
FILES = (
    "sentence_bert_config.json", "1_Pooling/config.json", "modules.json",
    "config_sentence_transformers.json",
)  # fmt: skip
_POOLINGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "first"}
_STEPS = ("Transformer", "Pooling", "Normalize")
_WIDTHS = ("word_embedding_dimension", "embedding_dimension", "include_prompt")


class Batch(NamedTuple):
    """A batch of texts as tokens, padded to the same length; `kept` is False at padding."""

    tokens: Int[np.ndarray, "n t"]
    kept: Bool[np.ndarray, "n t"]


class Sentences:
    """The tokenizer and the pooling in a sentence encoder's folder.

    Attributes:
      length: the largest number of tokens per text; longer texts are cut.
      pooling: 'mean' or 'first', see `models.embeddings`.
      normalise: whether embeddings are divided by their norm.
    """

    def __init__(self, folder: Path, max_length: int):
        """Read the files of the folder; `max_length` is the model's largest number of tokens.

        Raises:
          ValueError: the pooling, a module, a prompt, or lower-casing of texts is not supported.
          CheckpointError: a file is missing or damaged.
        """
        self._tokenizer = FolderTokenizer(folder)
        config = read_object(folder / FILES[0])
        self.length = max_length
        if config.get("max_seq_length") is not None:
            stated = checks.integer("max_seq_length", config["max_seq_length"], low=1)
            self.length = min(max_length, stated)
        if config.get("do_lower_case"):
            raise checks.fail("do_lower_case", "false: texts are not changed", "true")
        self.pooling = _pooling(read_object(folder / FILES[1]))
        # If the list of steps has no normalisation, embeddings are not normalised.
        self.normalise = "Normalize" in _steps(folder / FILES[2])
        _check_prompt(read_object(folder / FILES[3]))

    def batch(self, texts: Sequence[str]) -> Batch:
        """Return the tokens of `texts` with special tokens, padded to the longest text.

        Raises:
          ValueError: `texts` is empty.
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


def _pooling(config: Mapping[str, Any]) -> str:
    """Return the pooling that a configuration selects; 'mean' if the configuration is empty."""
    modes = [name for name in config if name.startswith("pooling_mode_")]
    for name in config.keys() - {*modes, *_WIDTHS}:
        raise checks.fail(repr(name)[:80], "absent from the pooling", repr(config[name])[:80])
    chosen = [name for name in modes if config[name]]
    if len(chosen) > 1:
        raise checks.fail("pooling", "one mode", ", ".join(chosen))
    return _POOLINGS[checks.choice("pooling", chosen[0], _POOLINGS)] if chosen else "mean"


def _steps(path: Path) -> tuple[str, ...]:
    """Return the module types in ``modules.json``; if the file is absent, return `_STEPS`."""
    if not path.exists():
        return _STEPS
    modules = storage.read_json(path)
    entries: list[Any] = modules if isinstance(modules, list) else [None]
    if not all(isinstance(entry, dict) for entry in entries):
        raise storage.Damaged(f"{path} is damaged: no list of modules")
    steps = tuple(str(entry.get("type")).rpartition(".")[2] for entry in entries)
    if steps not in (_STEPS, _STEPS[:2]):
        raise checks.fail("modules.json", ", ".join(_STEPS), ", ".join(steps))
    if entries[1].get("path") != "1_Pooling":
        raise checks.fail("modules.json", "a pooling in 1_Pooling", repr(entries[1].get("path")))
    return steps


def _check_prompt(config: Mapping[str, Any]) -> None:
    """Raise an error if the configuration has a prompt that is put before every text."""
    name, prompts = config.get("default_prompt_name"), config.get("prompts")
    empty = isinstance(prompts, dict) and isinstance(name, str) and prompts.get(name) == ""
    if name is not None and not empty:
        allowed = "null: no text is put before the texts"
        raise checks.fail("default_prompt_name", allowed, repr(name)[:80])
