"""Hugging Face folders: ``config.json`` with ``model.safetensors``, whole or in shards."""

import contextlib
import math
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from slth_jax import checks, storage
from slth_jax.models.settings import Settings
from slth_jax.models.weights import gpt2, layout, llama
from slth_jax.models.weights.reader import Reader
from slth_jax.storage import CheckpointError, Damaged, reason

ARCHITECTURES: dict[str, ModuleType] = {
    "gpt2": gpt2,
    "llama": llama,
    "mistral": llama,
    "qwen2": llama,
}
"""Files that know an architecture, by the `model_type` of ``config.json``."""


def open_folder(path: str | os.PathLike[str]) -> Reader:
    """Return a reader of a folder with ``config.json`` and ``model.safetensors`` (or its index).

    Names and shapes of all weights are compared with the config before any is read.

    Raises:
      ValueError: an architecture or a setting that is not supported, or weights that do not fit.
      CheckpointError: a file is missing or damaged.
    """
    folder = Path(path)
    fields = storage.read_json(folder / "config.json")
    kind = fields.get("model_type") if isinstance(fields, dict) else None
    module = ARCHITECTURES[checks.choice("model_type", kind, ARCHITECTURES)]
    try:
        settings: Settings = module.settings(fields)
    except KeyError as error:
        raise Damaged(f"{folder / 'config.json'} is damaged: it lacks {error}") from error
    table: layout.Layout = module.layout(fields)
    wanted = table.their_shapes(settings)
    files = {}
    shapes = {}
    for file in _files(folder):
        with _opened(file) as tensors:
            for name in tensors.keys():  # noqa: SIM118, not a dictionary
                if not name.endswith(module.IGNORED) or name in wanted:
                    plain = name.removeprefix(module.PREFIX)
                    files[plain] = (file, name)
                    shapes[plain] = tuple(tensors.get_slice(name).get_shape())
    layout.check("weights", shapes, wanted, what=f"a {kind} of this config")
    read = partial(_tensor, files)
    return Reader(
        path=str(path),
        settings=settings,
        num_bytes=4 * sum(math.prod(shape) for shape in wanted.values()),
        read_ends=lambda: layout.read(table.ends, read),
        read_block=lambda index: layout.read(table.rows_of(index), read),
    )


def save(
    path: str | os.PathLike[str], params: Mapping[str, Any], settings: Settings, **fields: Any
) -> None:
    """Write a folder that `transformers` reads: GPT-2, or Llama where positions are rotary.

    It holds ``config.json`` and ``model.safetensors``, each written atomically. A GPT-2 has all
    gains, shifts and biases; a Llama may have the biases of its attention or of its networks.
    `fields` are further ones for ``config.json``.

    Raises:
      ValueError: settings or parameters that the architecture does not have.
      CheckpointError: the folder cannot be written to.
    """
    if settings.positions == "rotary":
        module: ModuleType = llama
        biases, mlp_biases = "h.attn.q.bias" in params, "h.mlp.in.bias" in params
        fields = llama.fields(settings, biases=biases, mlp_biases=mlp_biases) | fields
    else:
        module, fields = gpt2, gpt2.fields(settings) | fields
    state = to_state(params, settings, module.layout(fields), module.PREFIX)
    folder = storage.make_folder(path)
    data = safetensors.numpy.save(state, metadata={"format": "pt"})
    storage.write_bytes(folder / "model.safetensors", data)
    storage.write_json(folder / "config.json", fields)


def to_state(
    params: Mapping[str, Any], settings: Settings, table: layout.Layout, prefix: str
) -> dict[str, np.ndarray]:
    """Return parameters under the names of a layout.

    Raises:
      ValueError: a parameter is missing, unknown, or has another shape than `settings` say.
    """
    names = {name for name, _, _ in table.stacked(settings.num_blocks)}
    for name in sorted(names ^ params.keys()):
        problem = "without" if name in names else "with"
        raise checks.fail("params", "complete for the settings", f"parameters {problem} {name!r}")
    state = layout.write(table, params, settings.num_blocks)
    shapes = {name: value.shape for name, value in state.items()}
    layout.check("params", shapes, table.their_shapes(settings), what="of these settings")
    return {f"{prefix}{name}" if name != "lm_head.weight" else name: v for name, v in state.items()}


def _files(folder: Path) -> list[Path]:
    """Return the weight files: one, or those that the index of a sharded model names."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file() or not index.is_file():
        return [folder / "model.safetensors"]
    try:
        names = sorted(set(storage.read_json(index)["weight_map"].values()))
    except (KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{index} is damaged: it has no 'weight_map'") from error
    return [folder / name for name in names]


@contextlib.contextmanager
def _opened(path: Path):
    """Yield a safetensors file whose tensors are read one at a time."""
    try:
        with safetensors.safe_open(path, framework="numpy") as tensors:
            yield tensors
    except (safetensors.SafetensorError, ValueError) as error:
        raise Damaged(f"{path} is damaged: {reason(error)}") from error
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {reason(error)}") from error


def _tensor(files: Mapping[str, tuple[Path, str]], name: str) -> np.ndarray:
    path, theirs = files[name]
    with _opened(path) as tensors:
        return np.asarray(tensors.get_tensor(theirs)).astype(np.float32)
