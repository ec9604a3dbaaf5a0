"""Read llama2.c's ``.bin`` files (Karpathy) of versions 0, 1 and 2: a header, then arrays.

In version 0 the header has seven numbers, in versions 1 and 2 it has 256 bytes. Versions 0 and 1
store float32 arrays; version 2 stores matrices as 8-bit integers with a scale per group (Q8_0).
"""

import math
import os
import struct
from pathlib import Path

import numpy as np

from slth_jax.models.settings import Settings, make_settings
from slth_jax.models.weights.reader import Arrays, Reader
from slth_jax.models.weights.tensors import check_file
from slth_jax.storage import CheckpointError, Damaged, reason

_MAGIC = 0x616B3432  # "ak42"
_HEADER = 256
_MATRICES = ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.gate", "mlp.out", "mlp.in")
_ENDS = ("wte", "ln_f.gain", "tables", "unembed")  # each is one array, not one per block
Shapes = dict[str, tuple[int, ...]]


def open_bin(path: str | os.PathLike[str]) -> Reader:
    """Return a reader of a llama2.c model of version 0 (no magic number), 1 or 2.

    Matrices are stored as ``[out, in]``. The rows of query and key heads are stored as neighbouring
    pairs (even, odd). The reader reorders these rows so that all even rows of a head precede its
    odd rows.

    Raises:
      CheckpointError: the file is missing, has another format, or its length contradicts its
        header.
    """
    path = Path(path)
    check_file(path)
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            header = file.read(_HEADER)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {reason(error)}") from error
    if len(header) < 28:
        raise Damaged(f"{path} is no llama2.c model: {size} bytes are too short for a header")
    if struct.unpack("<I", header[:4])[0] != _MAGIC:
        numbers = list(struct.unpack("<7i", header[:28]))
        # A negative vocabulary size means that the output layer is not tied.
        settings = _settings(path, numbers[:5], abs(numbers[5]), numbers[6], numbers[5] > 0, size)
        return _reader(path, settings, _first_format(settings), 28, size)
    if len(header) < _HEADER:
        raise Damaged(f"{path} is no llama2.c model: {size} bytes are too short for a header")
    version, *numbers = struct.unpack("<i7i", header[4:36])
    if version not in (1, 2) or header[36] > 1:
        raise Damaged(f"{path} is no llama2.c model of version 0, 1 or 2: version {version}")
    settings = _settings(path, numbers[:5], numbers[5], numbers[6], bool(header[36]), size)
    group = struct.unpack("<i", header[37:41])[0] if version == 2 else 0
    return _reader(path, settings, _later_format(settings), _HEADER, size, group)


def _settings(path, sizes, vocab_size: int, length: int, tied: bool, size: int) -> Settings:
    d, f, b, h, g = sizes
    if min(d, f, b, h, g, vocab_size, length) < 1:
        raise Damaged(f"{path} is no llama2.c model: its header has numbers that are not positive")
    if d % h or h % g or (d // h) % 2:
        raise Damaged(f"{path} is no llama2.c model: no such heads, {h} on {g} of width {d}")
    if max(b * d * f, d * vocab_size) > size:  # every entry takes at least one byte
        raise Damaged(f"{path} is damaged: {size} bytes are too few for the sizes in its header")
    return make_settings(
        vocab_size=vocab_size,
        width=d,
        num_blocks=b,
        num_heads=h,
        num_kv_heads=g,
        hidden_width=f,
        max_length=length,
        norm="rms",
        positions="rotary",
        activation="silu",
        gated=True,
        tied=tied,
    )


def _blocks(s: Settings) -> Shapes:
    """Return a dict from name to shape of the blocks' arrays in the file."""
    b, d, f = s.num_blocks, s.width, s.hidden_width
    heads, kv_heads = s.num_heads * s.head_width, s.num_kv_heads * s.head_width
    return {
        "ln_1.gain": (b, d), "ln_2.gain": (b, d), "attn.q": (b, heads, d),
        "attn.k": (b, kv_heads, d), "attn.v": (b, kv_heads, d), "attn.o": (b, d, heads),
        "mlp.gate": (b, f, d), "mlp.out": (b, d, f), "mlp.in": (b, f, d),
    }  # fmt: skip


def _first_format(s: Settings) -> Shapes:
    """Return a dict from name to shape of all arrays of version 0, in the file's order."""
    blocks = _blocks(s)
    order = ("ln_1.gain", *_MATRICES[:4], "ln_2.gain", *_MATRICES[4:])
    shapes = {"wte": (s.vocab_size, s.width)} | {name: blocks[name] for name in order}
    shapes |= {"ln_f.gain": (s.width,), "tables": (2, s.max_length, s.head_width // 2)}
    return shapes if s.tied else shapes | {"unembed": (s.vocab_size, s.width)}


def _later_format(s: Settings) -> Shapes:
    """Return a dict from name to shape of all arrays of versions 1 and 2, in the file's order."""
    blocks = _blocks(s)
    shapes: Shapes = {name: blocks[name] for name in ("ln_1.gain", "ln_2.gain")}
    shapes |= {"ln_f.gain": (s.width,), "wte": (s.vocab_size, s.width)}
    shapes |= {name: blocks[name] for name in _MATRICES}
    return shapes if s.tied else shapes | {"unembed": (s.vocab_size, s.width)}


def _reader(
    path: Path, settings: Settings, shapes: Shapes, offset: int, size: int, group: int = 0
) -> Reader:
    """Return a reader of arrays that are stored one after another, beginning at `offset`.

    If `group` is not 0, each matrix of a block is stored as 8-bit integers, followed by a float32
    scale per `group` entries.
    """
    places: dict[str, list[int]] = {}  # the offsets of an array in all blocks
    start = offset
    for name, shape in shapes.items():
        entries = math.prod(shape if name in _ENDS else shape[1:])
        quantised = group != 0 and not name.endswith("gain")
        if quantised and (group < 1 or entries % group):
            raise Damaged(f"{path} is damaged: groups of {group} in {name} of {entries} entries")
        length = entries + 4 * (entries // group) if quantised else 4 * entries
        places[name] = [start + i * length for i in range(1 if name in _ENDS else shape[0])]
        start += length * len(places[name])
    if size != start:
        raise Damaged(f"{path} is damaged: {size} bytes, its header states {start}")

    def read(name: str, index: int = 0) -> np.ndarray:
        shape = shapes[name] if name in _ENDS else shapes[name][1:]
        entries, at = math.prod(shape), places[name][index]
        if group == 0 or name.endswith("gain"):
            return np.array(np.memmap(path, "<f4", "r", at, shape))
        integers = np.array(np.memmap(path, "i1", "r", at, (entries,)), np.float32)
        scales = np.memmap(path, "<f4", "r", at + entries, (entries // group,))
        return (integers.reshape(-1, group) * scales[:, None]).reshape(shape)

    def ends() -> Arrays:
        arrays = {"wte": read("wte"), "ln_f.gain": read("ln_f.gain")}
        return arrays if settings.tied else arrays | {"unembed": read("unembed").T}

    def block(index: int) -> Arrays:
        arrays = {name: read(name, index) for name in shapes if name not in _ENDS}
        for name in ("attn.q", "attn.k"):
            arrays[name] = halves(arrays[name], settings.head_width)
        return {name: value.T for name, value in arrays.items()}

    entries = sum(math.prod(shape) for name, shape in shapes.items() if name != "tables")
    return Reader(str(path), settings, 4 * entries, ends, block)


def halves(w: np.ndarray, head_width: int) -> np.ndarray:
    """Move the even rows of each head before its odd rows; `w` is `[heads k, d]`."""
    pairs = w.reshape(-1, head_width // 2, 2, w.shape[1])
    return pairs.transpose(0, 2, 1, 3).reshape(w.shape)
