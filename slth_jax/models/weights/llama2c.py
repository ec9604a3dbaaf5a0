"""llama2.c's legacy ``.bin`` files (Karpathy): a header of seven numbers, then float32 arrays."""

import math
import os
from pathlib import Path

import numpy as np

from slth_jax.models.settings import make_settings
from slth_jax.models.weights.reader import Arrays, Reader
from slth_jax.storage import CheckpointError, Damaged, reason

_HEADER = 28


def open_bin(path: str | os.PathLike[str]) -> Reader:
    """Return a reader of a llama2.c model of the first format (no magic number).

    Matrices stand as ``[out, in]``; query and key heads hold neighbouring pairs (even, odd), which
    are brought to halves. A negative vocabulary says that the output layer is not tied.

    Raises:
      CheckpointError: the file is missing, of another format, or not as long as its header says.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        header = np.fromfile(path, "<i4", 7)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {reason(error)}") from error
    if header.size < 7 or min(*header[:5], header[6]) < 1 or header[5] == 0:
        raise Damaged(f"{path} is no llama2.c model of the first format (seven positive numbers)")
    d, f, b, h, g, v, length = (int(each) for each in header)
    if d % h or h % g or (d // h) % 2 or max(d, f, abs(v), length) > 1 << 28:
        raise Damaged(f"{path} is no llama2.c model: no such heads, {h} on {g} of width {d}")
    settings = make_settings(
        vocab_size=abs(v),
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
        tied=v > 0,
    )
    k = settings.head_width
    shapes = {
        "wte": (abs(v), d),
        "ln_1.gain": (b, d),
        "attn.q": (b, h * k, d),
        "attn.k": (b, g * k, d),
        "attn.v": (b, g * k, d),
        "attn.o": (b, d, h * k),
        "ln_2.gain": (b, d),
        "mlp.gate": (b, f, d),
        "mlp.out": (b, d, f),
        "mlp.in": (b, f, d),
        "ln_f.gain": (d,),
        "tables": (2, length, k // 2),
        **({} if v > 0 else {"unembed": (abs(v), d)}),
    }
    wanted = _HEADER + 4 * sum(math.prod(shape) for shape in shapes.values())
    if size != wanted:
        raise Damaged(f"{path} is damaged: {size} bytes, its header asks for {wanted}")
    arrays, offset = {}, _HEADER
    for name, shape in shapes.items():
        arrays[name] = np.memmap(path, "<f4", "r", offset, shape)
        offset += 4 * math.prod(shape)
    tables = arrays.pop("tables")

    def ends() -> Arrays:
        whole = {name: np.array(arrays[name]) for name in ("wte", "ln_f.gain")}
        return whole if v > 0 else {**whole, "unembed": np.array(arrays["unembed"]).T}

    def block(index: int) -> Arrays:
        inside = (name for name in arrays if name not in ("wte", "ln_f.gain", "unembed"))
        one = {name: np.array(arrays[name][index]) for name in inside}
        for name in ("attn.q", "attn.k"):
            one[name] = _halves(one[name], k)
        return {name: value.T for name, value in one.items()}

    return Reader(str(path), settings, wanted - _HEADER - tables.nbytes, ends, block)


def _halves(w: np.ndarray, head_width: int) -> np.ndarray:
    """Return rows `[heads k, d]` of neighbouring pairs with each head's even rows first."""
    pairs = w.reshape(-1, head_width // 2, 2, w.shape[1])
    return pairs.transpose(0, 2, 1, 3).reshape(w.shape)
