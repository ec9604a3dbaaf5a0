"""Read and write weights: `open` recognises the kind of a path and returns a `Reader`.

A `Reader` (`reader`) has the model's settings and reads its arrays block by block, under the names
in `models.settings`. `save` writes a folder. `folder` reads and writes Hugging Face folders. Tables
of names and keys describe their architectures (`bert`, `roberta`, `gpt2`, `llama`, with `layout`,
`keys` and `rope`). `llama2c` reads a ``.bin`` file, `gguf` reads a ``.gguf`` file, and `lens` reads
a TransformerLens ``.npz`` file. A model is read as the original library reads it. Every key of a
configuration and every array is used, or known to have no effect, or refused with an error message
that names it.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slth_jax import checks, storage
from slth_jax.models.weights.folder import open_folder, save
from slth_jax.models.weights.gguf import open_gguf
from slth_jax.models.weights.lens import open_npz
from slth_jax.models.weights.llama2c import open_bin
from slth_jax.models.weights.reader import Reader, stacked
from slth_jax.models.weights.tensors import check_file
from slth_jax.storage import CheckpointError, reason

__all__ = ["Reader", "local_path", "open", "save", "stacked"]

# Patterns of the files in a model's folder, except for weights that `torch.load` reads.
_PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.jinja", "*.model"]
KINDS = "a Hugging Face folder, a llama2.c .bin, a .gguf or a TransformerLens .npz"


def open(  # always called as weights.open
    path: str | os.PathLike[str], *, config: Mapping[str, Any] | None = None
) -> Reader:
    """Return a reader of the model at `path`.

    Args:
      path: a Hugging Face folder (GPT-2, Llama, Mistral, Qwen2, BERT or RoBERTa: ``config.json``
        and weights), its name on the Hub if `huggingface_hub` is installed, a llama2.c ``.bin``, a
        ``.gguf`` of the Llama type, or a TransformerLens ``.npz``; on this machine or in a bucket
        (gs://, s3://).
      config: the configuration for an ``.npz`` file; None if a JSON file with the same name exists.

    Raises:
      ValueError: the kind of file, a key, a value or an array is not supported.
      CheckpointError: a file is missing or damaged.
    """
    path = local_path(path)
    if config is not None and path.suffix != ".npz":
        raise checks.fail("config", f"None unless the model is an .npz: {path} has its own", "one")
    if path.is_dir():
        if not (path / "config.json").is_symlink() and not (path / "config.json").exists():
            raise checks.fail("model", "a folder with config.json", str(path))
        return open_folder(path)
    check_file(path)
    if path.suffix == ".npz":
        return open_npz(path, config=config)
    kinds = {".bin": open_bin, ".gguf": open_gguf}
    if path.suffix not in kinds:
        raise checks.fail("model", KINDS, str(path))
    return kinds[path.suffix](path)


def _from_bucket(path: storage.BucketPath) -> Path:
    """Copy a model's folder, or its file with accompanying files; return the local path."""
    if path.is_file():
        names = (path.name, f"{path.stem}.json", "tok*.bin")
        return storage.fetched(path.parent, names) / path.name
    if not path.is_dir():
        raise CheckpointError(f"cannot read {path}: no such object or folder")
    return storage.fetched(path, (*_PATTERNS, "*.bin", "*/*.json"))


def local_path(path: str | os.PathLike[str]) -> Path:
    """Return the path of a model on this machine; download it from a bucket or the Hub if needed.

    A name of the form OWNER/NAME that is not a path on this machine is taken as a name on the Hub.
    An error is raised if the library `huggingface_hub` is not installed, or if there is neither a
    network nor a cached copy.

    Raises:
      CheckpointError: there is no such model on this machine or on the Hub.
    """
    local = storage.place(path)
    if isinstance(local, storage.BucketPath):
        return _from_bucket(local)
    name = os.fspath(path)
    if local.exists() or local.is_symlink() or not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        return local
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError as error:
        line = f'cannot read {name}: No such folder; names of the Hub need "slth-jax[models]"'
        raise CheckpointError(line) from error
    try:
        return Path(snapshot_download(name, allow_patterns=_PATTERNS))
    except Exception as error:  # an error of the network, the Hub, or the cache on disk
        line = f"cannot read {name}: no such folder here, and not on the Hub ({reason(error)})"
        raise CheckpointError(line) from error
