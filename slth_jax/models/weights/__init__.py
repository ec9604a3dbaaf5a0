"""Read and write weights: `open` recognises a file's format and returns a `Reader`.

A `Reader` (in the file `reader`) has the model's settings and reads its arrays block by block,
under the names in `models.settings`. `save` writes a Hugging Face folder. `folder` reads and writes
Hugging Face folders. The files `bert`, `roberta`, `gpt2` and `llama` contain tables of array names
and configuration keys for each architecture; `layout`, `keys` and `rope` interpret these tables.
`llama2c` reads a ``.bin`` file, `gguf` reads a ``.gguf`` file, and `lens` reads a TransformerLens
``.npz`` file. A model read by this subpackage computes the same function as in the library that
wrote it. A key of the configuration or an array is ignored only if it is known to have no effect.
If a key or array is not supported, an error names it.
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
      path: a Hugging Face folder with ``config.json`` and weights (GPT-2, Llama, Mistral, Qwen2,
        BERT or RoBERTa), a llama2.c ``.bin``, a ``.gguf`` of the Llama type, or a TransformerLens
        ``.npz``. The path may be on this machine, in a bucket (gs://, s3://) or, if
        `huggingface_hub` is installed, a name on the Hub.
      config: the configuration for an ``.npz`` file; None to read it from the JSON file of the same
        name.

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
    """Copy a model from a bucket, with its tokenizer and configuration; return the local path."""
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
