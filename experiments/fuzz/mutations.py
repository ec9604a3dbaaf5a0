"""Make random changes in bytes, JSON, named arrays and folders.

Every function that makes changes takes a random generator as its first argument. Functions on data
return a changed copy; functions on folders change the files in place. Generators with equal seeds
make equal changes.
"""

import copy
import json
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

DEEP = 3000  # nested more deeply than Python's recursion limit
NASTY: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 255, 2**31, 2**32, 2**63, 10**30, -(10**30), 0.5, -0.5, 1e39,
    1e308, float("nan"), float("inf"), -float("inf"), "", "x", "0", "nan", "float64", "../../x",
    "\x1b[31mwhole\n", "a" * 300, "\ud800", [], [[]], [1], ["x"], [None], {}, {"a": 1},
]  # fmt: skip


def flip_a_bit(rng: random.Random, data: bytes) -> bytes:
    """Flip one bit."""
    changed = bytearray(data)
    if changed:
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut(rng: random.Random, data: bytes) -> bytes:
    """Drop a random number of bytes at the end."""
    return data[: rng.randrange(len(data) + 1)]


def extend(rng: random.Random, data: bytes) -> bytes:
    """Append random bytes."""
    return data + rng.randbytes(rng.choice((1, 8, 1000)))


def blank(rng: random.Random, data: bytes) -> bytes:
    """Set consecutive bytes to 0 or 255, as on a damaged disk."""
    start = rng.randrange(len(data) + 1)
    size = min(rng.choice((1, 4, 64, 4096)), len(data) - start)
    return data[:start] + rng.choice((b"\0", b"\xff")) * size + data[start + size :]


def swap(rng: random.Random, data: bytes) -> bytes:
    """Exchange two equally long parts of the data."""
    size = rng.choice((1, 4, 16))
    if len(data) < 2 * size:
        return data[::-1]
    a = rng.randrange(len(data) - 2 * size + 1)
    b = rng.randrange(a + size, len(data) - size + 1)
    return (
        data[:a] + data[b : b + size] + data[a + size : b] + data[a : a + size] + data[b + size :]
    )


BYTES: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    flip_a_bit, flip_a_bit, flip_a_bit, cut, extend, blank, swap,
)  # fmt: skip


def change_bytes(rng: random.Random, data: bytes) -> bytes:
    """Change bytes with a randomly chosen function of `BYTES`."""
    return rng.choice(BYTES)(rng, data)


def change_json(rng: random.Random, value: Any) -> Any:
    """Replace, remove, add or rename one to three random entries, or alter random numbers."""
    root = [copy.deepcopy(value)]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        holder, key = rng.choice(_places(root))
        _change_entry(rng, holder, key)
    return root[0]


def _places(root: list[Any]) -> list[tuple[Any, Any]]:
    """Return, for every entry of a JSON value, the container of the entry and its key or index."""
    places, open_ = [], [(root, 0)]
    while open_:
        holder, key = open_.pop()
        places.append((holder, key))
        inner = holder[key]
        keys = inner if isinstance(inner, dict) else range(len(inner) if type(inner) is list else 0)
        open_ += [(inner, k) for k in keys]
    return places


def _change_entry(rng: random.Random, holder: Any, key: Any) -> None:
    value = holder[key]
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    action = rng.choice(("nasty", "nasty", "drop", "add", "rename", "near" if number else "nasty"))
    if action == "drop" and isinstance(holder, dict):
        del holder[key]
    elif action == "add" and isinstance(value, dict):
        value[rng.choice(("mystery", "", "a" * 300, "x\ny"))] = rng.choice(NASTY)
    elif action == "rename" and isinstance(holder, dict):
        holder[f"{key}_"] = holder.pop(key)
    elif action == "near" and number:
        holder[key] = rng.choice((value + 1, value - 1, -value, value * 2, value / 2, value * 1000))
    else:
        holder[key] = copy.deepcopy(rng.choice(NASTY))


def json_text(rng: random.Random, value: Any) -> bytes:
    """Change a JSON value and return its text; sometimes the text is damaged too."""
    text = json.dumps(change_json(rng, value))
    kind = rng.randrange(20)
    if kind == 0:
        text = "[" * DEEP + "]" * DEEP
    elif kind == 1:
        text = text[: rng.randrange(len(text) + 1)]
    elif kind == 2:
        text = text.replace(":", ":" + "[" * DEEP, 1)
    elif kind == 3:
        text = text.replace("{", '{"a": 1, "a": 2, ', 1)
    data = text.encode("utf-8", "surrogatepass")
    return data + b"\xff\xfe" if kind == 4 else data


def change_arrays(rng: random.Random, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rename, drop or copy a random array, or change the array's dtype, shape or an entry."""
    arrays = dict(arrays)
    name = rng.choice(sorted(arrays))
    array = arrays[name]
    action = rng.randrange(10)
    if action == 0:
        del arrays[name]
    elif action == 1:
        arrays[f"{name}.mystery"] = arrays.pop(name)
    elif action == 2:
        arrays["mystery"] = array
    elif action in (3, 4):
        dtype = rng.choice(("f2", "f8", "i1", "i8", "u1", "?", "c8", ">f4"))
        with np.errstate(all="ignore"):
            arrays[name] = array.astype(dtype)
    elif action in (5, 6):
        shapes = (array.T, array[..., None], array[:0], array.reshape(-1), array[..., :-1])
        arrays[name] = rng.choice(shapes) if array.ndim else array.reshape(1)
    else:
        changed = np.array(array)
        if changed.size:
            at = rng.randrange(changed.size)
            entry = rng.choice((np.nan, np.inf, -np.inf, 3e38, 1e-45, 500.0))
            with np.errstate(all="ignore"):
                changed.reshape(-1)[at] = entry
        arrays[name] = changed
    return arrays


def safetensors_bytes(header: Any, data: bytes) -> bytes:
    """Return the bytes of a safetensors file with this header (which may be invalid) and data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def split_safetensors(data: bytes) -> tuple[Any, bytes]:
    """Return the header and the data of an undamaged safetensors file."""
    (size,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def change_folder(rng: random.Random, folder: Path) -> None:
    """Damage, remove or replace a file of a folder, or add a file."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    file = rng.choice(files)
    action = rng.randrange(10)
    if action == 0:
        file.unlink()
    elif action == 1:
        file.unlink()
        file.mkdir()
    elif action == 2:
        file.unlink()
        file.symlink_to("missing")
    elif action == 3:
        shutil.copyfile(rng.choice(files), folder / "copy")
        (folder / "copy").replace(file)
    elif action == 4:
        (folder / "mystery").write_bytes(rng.randbytes(30))
    elif action == 5 and file.suffix == ".json":
        try:
            file.write_bytes(json_text(rng, json.loads(file.read_bytes())))
        except ValueError:
            file.write_bytes(change_bytes(rng, file.read_bytes()))
    else:
        file.write_bytes(change_bytes(rng, file.read_bytes()))
