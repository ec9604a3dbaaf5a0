"""Read GGUF files of the Llama type through the library `gguf`.

Arrays may be F32, F16, BF16 or quantised.
"""

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from slth_jax import checks
from slth_jax.models.settings import make_settings
from slth_jax.models.weights import keys, layout, rope
from slth_jax.models.weights.keys import Keys
from slth_jax.models.weights.layout import Layout, Row
from slth_jax.models.weights.llama2c import halves
from slth_jax.models.weights.reader import Arrays, Reader
from slth_jax.models.weights.tensors import check_file
from slth_jax.storage import Damaged, reason

_MAPS = {
    "attn.q": "attn_q", "attn.k": "attn_k", "attn.v": "attn_v", "attn.o": "attn_output",
    "mlp.gate": "ffn_gate", "mlp.in": "ffn_up", "mlp.out": "ffn_down",
}  # fmt: skip
KEYS = Keys(
    used={
        "context_length": 2048, "embedding_length": None, "block_count": None,
        "feed_forward_length": None, "attention.head_count": None,
        "attention.head_count_kv": None, "attention.layer_norm_rms_epsilon": 1e-5,
        "attention.key_length": None, "attention.value_length": None, "vocab_size": None,
        "rope.freq_base": 10_000.0, "rope.dimension_count": None,
        "rope.scaling.type": "linear", "rope.scaling.factor": None,
    },
    only={"attention.causal": (True,), "expert_count": (0,), "expert_used_count": (0,)},
    ignored=frozenset({"rope.scaling.finetuned", "rope.scaling.original_context_length"}),
)  # fmt: skip
"""The supported keys ``llama.*``, with the defaults of llama.cpp.

``general.*``, ``tokenizer.*`` and ``quantize.*`` have no effect.
"""


def open_gguf(path: str | os.PathLike[str]) -> Reader:
    """Return a reader of a GGUF file of architecture 'llama'.

    llama.cpp stores the rows of query and key heads as neighbouring pairs (even, odd). The reader
    reorders the rows so that all even rows of a head precede its odd rows.

    Raises:
      ValueError: the architecture, a key or an array is not supported.
      CheckpointError: the file is missing or damaged.
      ModuleNotFoundError: the library `gguf` is not installed.
    """
    path = Path(path)
    gguf, opened = _opened(path)
    fields = _contents(path, opened, tokenizer=False)
    architecture = fields.pop("general.architecture", None)
    checks.choice("general.architecture", architecture, ("llama",))
    ignored = ("general.", "quantize.", "GGUF.", "split.")
    values = keys.read(
        {n.removeprefix("llama."): v for n, v in fields.items() if not n.startswith(ignored)},
        KEYS,
        kind="llama",
    )
    tensors = {tensor.name: tensor for tensor in opened.tensors}
    return _reader(path, values, tensors, partial(_dequantised, gguf))


def tokenizer_fields(path: Path) -> dict[str, Any]:
    """Return the fields of a GGUF file that describe its tokenizer, 'tokenizer.*'.

    Raises:
      CheckpointError: the file is missing or damaged.
      ModuleNotFoundError: the library `gguf` is not installed.
    """
    return _contents(path, _opened(path)[1], tokenizer=True)


def _opened(path: Path) -> tuple[Any, Any]:
    """Return the module `gguf` and its `GGUFReader` of a file."""
    check_file(path)
    try:
        import gguf
    except ModuleNotFoundError as error:
        message = 'GGUF files need the library gguf: pip install "slth-jax[models]"'
        raise ModuleNotFoundError(message) from error
    try:
        return gguf, gguf.GGUFReader(path)
    except Exception as error:  # the library raises errors of many types
        raise Damaged(f"{path} is damaged or no GGUF file: {reason(error)}") from error


def _contents(path: Path, opened: Any, *, tokenizer: bool) -> dict[str, Any]:
    """Return the fields of the tokenizer if `tokenizer` is true, else all other fields."""
    try:
        return {
            name: field.contents()
            for name, field in opened.fields.items()
            if name.startswith("tokenizer.") == tokenizer
        }
    except Exception as error:  # the library raises errors of many types
        raise Damaged(f"{path} is damaged or no GGUF file: {reason(error)}") from error


def _dequantised(gguf: Any, tensor: Any) -> np.ndarray:
    try:
        value = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError as error:
        allowed = "of a type that the library gguf dequantises"
        raise checks.fail(f"weights[{tensor.name!r}]", allowed, tensor.tensor_type.name) from error
    return np.asarray(value, np.float32).reshape(_shape(tensor))


def _float32(values: Mapping[str, Any], name: str) -> float:
    """Return a float32 in the file as the shortest decimal that rounds to it, such as 1e-5."""
    return float(str(np.float32(checks.number(name, values[name], low=0, high=1e12))))


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(int(size) for size in reversed(tensor.shape))


def _layout(names: Mapping[str, Any]) -> Layout:
    rows = [
        Row("ln_1.gain", "blk.{b}.attn_norm.weight"), Row("ln_2.gain", "blk.{b}.ffn_norm.weight")
    ]  # fmt: skip
    for ours, theirs in _MAPS.items():
        rows.append(Row(ours, f"blk.{{b}}.{theirs}.weight", transposed=True))
        rows.append(Row(f"{ours}.bias", f"blk.{{b}}.{theirs}.bias"))
    ends = [Row("wte", "token_embd.weight"), Row("ln_f.gain", "output_norm.weight")]
    if "output.weight" in names:
        ends.append(Row("unembed", "output.weight", transposed=True))
    return Layout(tuple(ends), tuple(rows))


def _reader(path: Path, values: Mapping[str, Any], tensors: Mapping[str, Any], read: Any) -> Reader:
    factors = tensors.get("rope_freqs.weight")
    arrays = {name: tensor for name, tensor in tensors.items() if tensor is not factors}
    shapes = {name: _shape(tensor) for name, tensor in arrays.items()}
    table = _layout(arrays)
    count = table.count_blocks(shapes)
    if values["block_count"] != count:
        raise checks.fail("block_count", f"{count}, as in the file", values["block_count"])
    heads = keys.size(values, "attention.head_count")
    width = keys.size(values, "embedding_length")
    head_width = keys.size(values, "attention.key_length", width // heads)
    kv_heads = keys.size(values, "attention.head_count_kv", heads)
    hidden = keys.size(values, "feed_forward_length")
    table_rows = shapes.get("token_embd.weight", (0,))[0]
    layout.check_sizes(shapes, table, {
        "embedding_length": ("wte", 1, width),
        "feed_forward_length": ("mlp.in", 1, hidden),
        "head_count * key_length": ("attn.q", 1, heads * head_width),
        "head_count_kv * key_length": ("attn.k", 1, kv_heads * head_width),
        "vocab_size": ("wte", 0, keys.size(values, "vocab_size", table_rows)),
    })  # fmt: skip
    if values["attention.value_length"] not in (None, head_width):
        raise checks.fail("value_length", f"{head_width}", values["attention.value_length"])
    if values["rope.dimension_count"] not in (None, head_width):
        raise checks.fail("rope.dimension_count", f"{head_width}", values["rope.dimension_count"])
    settings = make_settings(
        vocab_size=table_rows,
        width=width,
        num_blocks=count,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_width=head_width,
        hidden_width=hidden,
        max_length=keys.size(values, "context_length"),
        norm="rms",
        norm_eps=_float32(values, "attention.layer_norm_rms_epsilon"),
        positions="rotary",
        rotary=_frequencies(values, head_width, None if factors is None else read(factors)),
        activation="silu",
        gated=True,
        tied="output.weight" not in arrays,
    )
    expected = table.their_shapes(settings)
    layout.check("weights", shapes, expected, what="a llama of these keys")
    table = table.without_absent(shapes, count)

    def array(name: str) -> np.ndarray:
        return read(arrays[name]) if name in arrays else np.zeros(expected[name], np.float32)

    def block(index: int) -> Arrays:
        result = layout.read(table.rows_of(index), array)
        for name in result.keys() & {"attn.q", "attn.k", "attn.q.bias", "attn.k.bias"}:
            result[name] = halves(np.atleast_2d(result[name]).T, head_width).T.reshape(
                result[name].shape
            )
        return result

    entries = sum(int(np.prod(shape)) for shape in shapes.values())
    return Reader(str(path), settings, 4 * entries, lambda: layout.read(table.ends, array), block)


def _frequencies(
    values: Mapping[str, Any], head_width: int, factors: np.ndarray | None
) -> tuple[float, ...]:
    """Return the rotary frequencies, divided by `factors` (Llama 3's scaling) if given."""
    scaling = checks.choice("rope.scaling.type", values["rope.scaling.type"], ("none", "linear"))
    parameters = {"rope_type": "default"}
    if scaling == "linear" and values["rope.scaling.factor"] not in (None, 0.0):
        parameters = {"rope_type": "linear", "factor": values["rope.scaling.factor"]}
    fields = {
        **rope.KEYS,
        "rope_parameters": parameters,
        "rope_theta": _float32(values, "rope.freq_base"),
    }
    plain, _ = rope.frequencies(fields, head_width, keys.size(values, "context_length"))
    if factors is None:
        return plain
    if factors.shape != (head_width // 2,) or not (factors > 0).all():
        raise checks.fail("rope_freqs.weight", f"{head_width // 2} positive numbers", factors.shape)
    return tuple(f / float(factor) for f, factor in zip(plain, factors, strict=True))
