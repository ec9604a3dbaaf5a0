"""Read arrays, one at a time, from the weight files of a Hugging Face folder."""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors

from slth_jax import checks, storage
from slth_jax.storage import CheckpointError, Damaged, reason

DTYPES = ("F64", "F32", "F16", "BF16")
_LFS = b"version https://git-lfs.github.com/spec"


class Tensor(NamedTuple):
    """An array of a file: its shape, its dtype, and a function that reads it as float32."""

    shape: tuple[int, ...]
    dtype: str  # a key of `DTYPES` if it is floating-point and supported
    read: Callable[[], np.ndarray]


def tensors_in(folder: Path) -> dict[str, Tensor]:
    """Return a dict from name to `Tensor` of all arrays in the folder's weight files.

    Raises:
      ValueError: two files contain an array of the same name.
      CheckpointError: a file is missing, damaged, or cannot be read.
    """
    result: dict[str, Tensor] = {}
    for file in _files(folder):
        check_file(file)
        for name, tensor in (_of_torch if file.suffix == ".bin" else _of_safetensors)(file):
            if name in result:
                raise checks.fail(f"weights[{name!r}]", "in one file", f"again in {file.name}")
            result[name] = tensor
    return result


def check_file(path: Path) -> None:
    """Raise an error if a path is not a file, or is a git-lfs pointer.

    Raises:
      CheckpointError: the path is no file or a git-lfs pointer; the error message names the path.
    """
    if not path.exists():
        raise CheckpointError(f"cannot read {path}: No such file or directory")
    if not path.is_file():
        raise CheckpointError(f"cannot read {path}: it is no regular file")
    with open(path, "rb") as file:
        if file.read(len(_LFS)) == _LFS:
            raise Damaged(f"{path} is a git-lfs pointer without the weights: run `git lfs pull`")


def _files(folder: Path) -> list[Path]:
    """Return the folder's weight files: a single file, or the shards listed in an index file."""
    for stem in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{stem}.index.json"
        if (folder / stem).exists() or (folder / stem).is_symlink():
            return [folder / stem]
        if index.exists():
            return _shards(index)
    return [folder / "model.safetensors"]


def _shards(index: Path) -> list[Path]:
    fields = storage.read_json(index)
    names = fields.get("weight_map") if isinstance(fields, dict) else None
    if not isinstance(names, dict) or not names:
        raise Damaged(f"{index} is damaged: it has no 'weight_map'")
    files = sorted({str(name) for name in names.values()})
    for name in files:
        # The name must not contain a folder, so that an index cannot point outside the model's
        # folder.
        if Path(name).name != name or not name.endswith((".safetensors", ".bin")):
            raise Damaged(f"{index} is damaged: {name[:80]!r} is no weight file of its folder")
    return [index.parent / name for name in files]


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safetensors.safe_open(path, framework="numpy") as tensors:
            yield tensors
    except (safetensors.SafetensorError, ValueError) as error:
        raise Damaged(f"{path} is damaged: {reason(error)}") from error
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {reason(error)}") from error


def _of_safetensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    stated = {}
    with _opened(path) as tensors:
        for name in tensors.keys():  # noqa: SIM118, not a dictionary
            piece = tensors.get_slice(name)
            stated[name] = (piece.get_dtype(), tuple(piece.get_shape()))
    for name, (dtype, shape) in stated.items():
        yield name, Tensor(shape, dtype, partial(_read_safetensors, path, name))


def _read_safetensors(path: Path, name: str) -> np.ndarray:
    with _opened(path) as tensors:
        return np.asarray(tensors.get_tensor(name)).astype(np.float32)


def _of_torch(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the arrays of a torch file, which is loaded without executing code from the file."""
    try:
        import torch
    except ModuleNotFoundError as error:
        raise CheckpointError(
            f"cannot read {path} without torch: install it, or convert the folder with "
            "AutoModelForCausalLM.from_pretrained(F).save_pretrained(F) on a machine that has it"
        ) from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises errors of many types
        raise Damaged(f"{path} is damaged or not weights alone: {reason(error)}") from error
    if not isinstance(state, dict):
        raise Damaged(f"{path} is damaged: it contains no state dict")
    floats = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    names = dict(zip(floats, DTYPES, strict=True))
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise Damaged(f"{path} is damaged: it contains no state dict")
        dtype = names.get(value.dtype, str(value.dtype))
        yield name, Tensor(tuple(value.shape), dtype, partial(_read_torch, value))


def _read_torch(value: Any) -> np.ndarray:
    return value.detach().float().numpy()
