"""Read and write Hugging Face folders: ``config.json`` and weights, whole or in shards."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import safetensors.numpy

from slth_jax import checks, storage
from slth_jax.models.settings import Settings
from slth_jax.models.weights import bert, gpt2, layout, llama, roberta
from slth_jax.models.weights.layout import Layout
from slth_jax.models.weights.reader import Reader
from slth_jax.models.weights.tensors import DTYPES, Tensor, check_file, tensors_in

ARCHITECTURES: dict[str, ModuleType] = {
    "bert": bert,
    "gpt2": gpt2,
    "llama": llama,
    "mistral": llama,
    "qwen2": llama,
    "roberta": roberta,
}
"""The file of each architecture, by the `model_type` of ``config.json``."""

_HEAD = "lm_head.weight"


def open_folder(path: str | os.PathLike[str]) -> Reader:
    """Return a reader of a folder with ``config.json`` and weights.

    The names and shapes of all weights are compared with the config before any weight is read.

    Raises:
      ValueError: the architecture, a key or a value is not supported, or the weights do not fit the
        config.
      CheckpointError: a file is missing or damaged.
    """
    folder = Path(path)
    check_file(folder / "config.json")
    if (folder / "adapter_config.json").exists():  # transformers would add its arrays
        allowed = "a folder without adapter_config.json: merge the adapter into the weights"
        raise checks.fail("model", allowed, str(folder))
    fields = storage.read_json(folder / "config.json")
    kind = fields.get("model_type") if isinstance(fields, dict) else None
    module = ARCHITECTURES[checks.choice("model_type", kind, ARCHITECTURES)]
    tensors = _named(tensors_in(folder), module)
    table: Layout = module.layout(fields)
    sizes = module.sizes(fields)
    _tie(tensors, table)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    # Sizes are compared with the arrays first, so that nothing is allocated whose size is stated in
    # the config only.
    layout.check_sizes(shapes, table, sizes)
    count = table.count_blocks(shapes)
    num_blocks = module.num_blocks(fields)
    if num_blocks != count:
        raise checks.fail("num_hidden_layers", f"{count}, as in the weights", num_blocks)
    settings: Settings = module.settings(fields)
    expected = table.their_shapes(settings)
    layout.check("weights", shapes, expected, what=f"a {kind} of this config")
    table = table.without_absent(shapes, settings.num_blocks)
    expected = table.their_shapes(settings)

    def read(name: str) -> np.ndarray:
        if name not in tensors:  # a bias that only other blocks have
            return np.zeros(expected[name], np.float32)
        return tensors[name].read()

    return Reader(
        path=str(path),
        settings=settings,
        num_bytes=4 * sum(math.prod(shape) for shape in expected.values()),
        read_ends=lambda: layout.read(table.ends, read),
        read_block=lambda index: layout.read(table.rows_of(index), read, block=index),
    )


def save(
    path: str | os.PathLike[str], params: Mapping[str, Any], settings: Settings, **fields: Any
) -> None:
    """Write a folder of the type Llama, Qwen2, BERT, RoBERTa or GPT-2 for `transformers`.

    If positions are rotary, the model type is Llama or Qwen2. If outputs are states, the model type
    is RoBERTa (with a padding token) or BERT (without). All other networks are written as GPT-2.

    The folder contains ``config.json`` and ``model.safetensors``, each written atomically. A GPT-2
    must have all gains, shifts and biases. A Llama may have biases in its attention, in its fully
    connected layers, or in both. A Qwen2 has biases of queries, keys and values only. `fields` are
    added to ``config.json`` and override its other entries.

    Raises:
      ValueError: the architecture cannot have these settings or parameters.
      CheckpointError: the folder cannot be written to.
    """
    if settings.positions == "rotary":
        module: ModuleType = llama
        fields = llama.fields(settings, frozenset(params)) | fields
    else:
        encoder = bert if settings.pad_token is None else roberta
        module = encoder if settings.states else gpt2
        fields = module.fields(settings) | fields
    state = to_state(params, settings, module.layout(fields), module.PREFIX)
    folder = storage.make_folder(path)
    data = safetensors.numpy.save(state, metadata={"format": "pt"})
    storage.write_bytes(folder / "model.safetensors", data)
    storage.write_json(folder / "config.json", fields)


def to_state(
    params: Mapping[str, Any], settings: Settings, table: Layout, prefix: str
) -> dict[str, np.ndarray]:
    """Return a state dict: the parameters under the names in the layout `table`.

    Raises:
      ValueError: a parameter is missing or unknown, or its shape does not follow from `settings`.
    """
    names = {name for name, _, _ in table.stacked(settings.num_blocks)}
    for name in sorted(names ^ params.keys()):
        problem = "without" if name in names else "with"
        raise checks.fail("params", "complete for the settings", f"parameters {problem} {name!r}")
    state = layout.write(table, params, settings.num_blocks)
    shapes = {name: value.shape for name, value in state.items()}
    layout.check("params", shapes, table.their_shapes(settings), what="of these settings")
    return {name if name == _HEAD else f"{prefix}{name}": v for name, v in state.items()}


def _named(tensors: Mapping[str, Tensor], module: ModuleType) -> dict[str, Tensor]:
    """Remove the architecture's prefix from array names; leave out buffers without effect.

    Raises:
      ValueError: an array has an integer or float8 dtype, or occurs both with the prefix and
        without.
    """
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        plain = name.removeprefix(module.PREFIX)
        if module.IGNORED.match(plain):
            continue
        if tensor.dtype not in DTYPES:
            allowed = f"of dtype {', '.join(DTYPES)}"
            raise checks.fail(f"weights[{name!r}]", allowed, tensor.dtype)
        if plain in result:
            allowed = f"present once, with the prefix {module.PREFIX!r} or without"
            raise checks.fail(f"weights[{plain!r}]", allowed, "both")
        result[plain] = tensor
    return result


def _tie(tensors: dict[str, Tensor], table: Layout) -> None:
    """Drop a tied model's output matrix; if the embedding is absent, use this matrix instead.

    Raises:
      ValueError: the model is tied, but its output matrix differs from its embedding.
    """
    rows = {row.ours: row.theirs for row in table.ends}
    if "unembed" in rows or _HEAD not in tensors:
        return
    head = tensors.pop(_HEAD)
    embedding = tensors.setdefault(rows["wte"], head)
    if embedding is head:
        return
    if embedding.shape != head.shape or not np.array_equal(embedding.read(), head.read()):
        allowed = f"equal to {rows['wte']!r} if tie_word_embeddings is true"
        raise checks.fail(f"weights[{_HEAD!r}]", allowed, "another matrix")
