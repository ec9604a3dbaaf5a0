"""Weights from files: `open` finds out what a path is and returns a `Reader`, `save` writes.

A `Reader` (`reader`) gives settings at once and arrays block by block, under the names of
`models.settings`. `folder` reads and writes Hugging Face folders, whose architectures are tables of
names (`gpt2`, `llama`, by way of `layout`); `llama2c` reads a ``.bin``, `lens` a
TransformerLens-style ``.npz``.
"""

import os
from pathlib import Path

from slth_jax import checks, storage
from slth_jax.models.weights.folder import open_folder, save
from slth_jax.models.weights.lens import open_npz
from slth_jax.models.weights.llama2c import open_bin
from slth_jax.models.weights.reader import Reader

__all__ = ["Reader", "open", "save"]


def open(path: str | os.PathLike[str]) -> Reader:  # the word for it, always written weights.open
    """Return a reader of the model at `path`.

    Args:
      path: a Hugging Face folder (GPT-2, Llama, Mistral or Qwen2 with ``config.json`` and
        safetensors), a llama2.c ``.bin``, or a TransformerLens-style ``.npz``.

    Raises:
      ValueError: none of these, or an architecture that is not supported; the line names both.
      CheckpointError: a file is missing or damaged.
    """
    path = Path(path)
    if path.is_dir():
        if not (path / "config.json").exists():
            raise checks.fail("model", "a folder with config.json", str(path))
        return open_folder(path)
    if not path.exists():
        raise storage.CheckpointError(f"cannot read {path}: No such file or directory")
    kinds = {".bin": open_bin, ".npz": open_npz}
    if path.suffix not in kinds:
        allowed = "a Hugging Face folder, a llama2.c .bin or a TransformerLens-style .npz"
        raise checks.fail("model", allowed, str(path))
    return kinds[path.suffix](path)
