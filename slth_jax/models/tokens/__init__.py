"""Convert text to tokens and back, with the tokenizer files of models.

`open_tokenizer` recognises the format of a path. The formats are a llama2.c file (`llama2c`), a
Hugging Face folder (`folder`), a folder with the two files of GPT-2's first release (`gpt2`), and a
GGUF file (`gguf`). Each tokenizer has the methods `encode` and `decode`, and an attribute `stop`
with the tokens that end a text. For a model without a tokenizer, `numbers` writes tokens as
numbers. `sentences` makes padded batches of texts for encoders.
"""

import contextlib
import os
from pathlib import Path

from slth_jax import checks, storage
from slth_jax.models.tokens import gguf, sentences
from slth_jax.models.tokens.folder import FILES, FolderTokenizer, stated_ends
from slth_jax.models.tokens.gpt2 import BytePairs
from slth_jax.models.tokens.llama2c import Tokenizer, load
from slth_jax.models.tokens.numbers import Numbers
from slth_jax.models.tokens.sentences import Sentences

__all__ = [
    "AnyTokenizer",
    "BytePairs",
    "FolderTokenizer",
    "Numbers",
    "Sentences",
    "Tokenizer",
    "copy",
    "find",
    "load",
    "open_tokenizer",
]

_FOLDERS: dict[tuple[str, ...], type[FolderTokenizer] | type[BytePairs]] = {
    ("tokenizer.json",): FolderTokenizer,
    ("vocab.json", "merges.txt"): FolderTokenizer,
    ("vocab.bpe", "encoder.json"): BytePairs,
}
# Patterns of the names of all files that a tokenizer may have.
_NAMES = (*FILES, *sentences.FILES, "vocab.bpe", "encoder.json", "tok*.bin", "config.json")


AnyTokenizer = Tokenizer | FolderTokenizer | BytePairs | Numbers


def open_tokenizer(path: str | os.PathLike[str] | None) -> AnyTokenizer:
    """Return the tokenizer in a llama2.c file, GGUF file or folder; return `Numbers` for None.

    Raises:
      ValueError: the folder has no tokenizer files, or the type is not supported.
      CheckpointError: a file is missing or damaged.
    """
    if path is None:
        return Numbers()
    path = Path(path)
    if path.suffix == ".gguf":
        return gguf.open_gguf(path)
    if not path.is_dir():
        return load(path)
    for names, kind in _FOLDERS.items():
        if all((path / name).exists() for name in names):
            return kind(path)
    allowed = " or ".join(" and ".join(names) for names in _FOLDERS)
    raise checks.fail("tokenizer", f"a folder with {allowed}", str(path))


def find(
    given: str | os.PathLike[str] | None, beside: str | os.PathLike[str], vocab_size: int
) -> Path | None:
    """Return `given` or, if it is None, the path of a tokenizer `beside` a model or ticket."""
    if given is not None:
        return storage.fetched(storage.place(given), _NAMES)
    path = storage.place(beside)
    if isinstance(path, storage.BucketPath) and not path.is_dir():
        path = path.parent
    place = storage.fetched(path, _NAMES)
    folder = place if place.is_dir() else place.parent
    for name in ("tokenizer.bin", f"tok{vocab_size}.bin"):
        if (folder / name).is_file():
            return folder / name
    has = any(all((folder / name).exists() for name in names) for names in _FOLDERS)
    if has:
        return folder
    return place if place.suffix == ".gguf" and place.is_file() else None


def copy(path: str | os.PathLike[str], folder: str | os.PathLike[str]) -> None:
    """Copy the files of a tokenizer into `folder`, where `find` looks for them.

    The tokens that end a text, as listed in the model's ``generation_config.json`` and
    ``config.json``, are written to ``generation_config.json`` in `folder`.

    Raises:
      CheckpointError: a file cannot be read or written.
    """
    source, folder = Path(path), storage.place(folder)
    if source.suffix == ".gguf":
        # An unsupported tokenizer is refused only when a text needs it; a ticket needs no
        # tokenizer.
        with contextlib.suppress(ValueError):
            for name, content in gguf.folder_files(source).items():
                storage.write_bytes(folder / name, content)
        return
    if source.is_file():
        storage.write_bytes(folder / "tokenizer.bin", storage.read_bytes(source))
        return
    for name in (*FILES, *sentences.FILES, "vocab.bpe", "encoder.json"):
        if (source / name).exists():
            storage.make_folder((folder / name).parent)
            storage.write_bytes(folder / name, storage.read_bytes(source / name))
    ends = stated_ends(source)
    if ends:
        storage.write_json(folder / "generation_config.json", {"eos_token_id": sorted(ends)})
