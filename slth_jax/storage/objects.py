"""The format of a piece in a bucket: one object, plus more objects for large or sharded arrays.

A piece is a tree of arrays with notes (a dict of JSON values). The object NAME.safetensors contains
the arrays, the notes and a checksum, like the file that `Files` writes. If the arrays are large, or
sharded over processes, every process first writes its own shards into objects under NAME.parts/.
NAME.safetensors is then written last and lists these objects with their checksums. Objects under
NAME.parts/ are ignored if NAME.safetensors does not exist. (Orbax is not used because it cannot
write to S3, and because its checkpoints consist of several files, which no conditional write can
protect.)
"""

import functools
import hashlib
import json
import math
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jax.experimental import multihost_utils

from slth_jax.distributed import on_first
from slth_jax.storage.errors import Damaged
from slth_jax.storage.names import named_leaves
from slth_jax.storage.pieces import Files, Pending, decode, encode
from slth_jax.storage.places import BucketPath
from slth_jax.types import PyTree

_PART = 1 << 28  # the largest number of bytes per object, unless one shard has more
_KINDS = "biufc"  # NumPy's kinds of dtypes; other dtypes are stored as bytes
Slices = tuple[slice, ...]


class Objects:
    """The format of pieces as objects in a bucket; a piece is a tree of arrays with notes."""

    suffix = Files.suffix

    def names(self, pieces: BucketPath) -> list[str]:
        """Return the sorted names of all pieces in a folder, complete or damaged."""
        return [path.stem for path in pieces.glob(f"*{self.suffix}")]

    def notes(self, path: BucketPath) -> dict[str, Any]:
        """Return the notes of a piece without a check of the objects that contain its shards."""
        return decode(path, path.read_bytes())[1]

    def check(self, path: BucketPath) -> dict[str, Any]:
        """Compare all arrays of a piece with their checksums; return the notes of the piece.

        Raises:
          Damaged: an object is missing or changed.
        """
        _, notes = decode(path, path.read_bytes())
        for name in notes.get("parts", {}):
            _part(path, name, notes["parts"][name])
        return notes

    def load(self, path: BucketPath, like: PyTree = None) -> PyTree:
        """Return a piece's arrays in the structure, shapes, dtypes and shardings of `like`.

        Raises:
          Damaged: an object is missing or changed, or its arrays do not fit `like`.
        """
        arrays, notes = decode(path, path.read_bytes())
        if like is None:
            return arrays
        stored = _Shards(path, arrays, notes.get("parts", {}))
        leaves = [stored.leaf(name, leaf) for name, leaf in named_leaves(like).items()]
        return jax.tree.unflatten(jax.tree.structure(like), leaves)

    def start(
        self, place: BucketPath, aside: BucketPath, arrays: PyTree, notes: Mapping[str, Any]
    ) -> Pending:
        """Return the functions that write this process's arrays and make the piece visible.

        The piece becomes visible when the first process writes the object NAME.safetensors.
        """
        mine = dict(_shards_of(arrays))
        size = sum(array.nbytes for array in mine.values())
        if jax.process_count() == 1 and size <= _PART:
            data = encode(mine, notes)
            return Pending(lambda: None, lambda: _create(place, data))
        token = on_first(lambda: f"{aside.name}-{uuid.uuid4().hex}")
        folder = place.with_name(f"{place.stem}.parts")

        def finish() -> None:
            table = {}
            for number, group in enumerate(_groups(mine)):
                name = f"{token}-{jax.process_index()}-{number}"
                data = safetensors.numpy.save(group)
                (folder / name).write_bytes(data)
                table[name] = {"sha256": hashlib.sha256(data).hexdigest(), "arrays": list(group)}
            names = f"{token}-{jax.process_index()}.json"
            (folder / names).write_bytes(json.dumps(table).encode())
            if jax.process_count() > 1:  # the first process lists the parts of all processes
                multihost_utils.sync_global_devices(token)

        def commit() -> None:
            parts: dict[str, Any] = {}
            for process in range(jax.process_count()):
                table = folder / f"{token}-{process}.json"
                parts |= json.loads(table.read_bytes())
                table.unlink()
            if not _create(place, encode({}, {**notes, "parts": parts})):
                for name in parts:  # the parts of the other process are listed instead
                    (folder / name).unlink()

        return Pending(finish, commit)

    def drop(self, place: BucketPath) -> None:
        """Remove a piece, beginning with the object that makes it visible."""
        place.unlink()
        for part in place.with_name(f"{place.stem}.parts").iterdir():
            part.unlink()

    def clean(self, pieces: BucketPath, ending: str) -> None:
        """Remove the objects of incomplete pieces, which killed processes have left."""
        for part in pieces.glob("*.parts/*"):
            whole = part.parent.with_name(f"{part.parent.stem}{self.suffix}")
            if f"{ending}-" in part.name and not whole.is_file():
                part.unlink()


def _create(place: BucketPath, data: bytes) -> bool:
    """Write an object unless its name is taken; return whether the stored bytes are `data`.

    If the name is taken, a process that splits the run into a different number of shards has
    already written the same arrays.
    """
    return place.store.swap(place.key, None, data) is not None


def _shards_of(arrays: PyTree) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (name, array) for each array, or shard of an array, that this process writes."""
    for name, leaf in named_leaves(arrays).items():
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            for shard in leaf.addressable_shards:
                if shard.replica_id == 0:
                    bounds = [range(n)[s] for n, s in zip(leaf.shape, shard.index, strict=True)]
                    place = ",".join(f"{b.start}:{b.stop}" for b in bounds)
                    yield f"{name}@{place}", _plain(np.asarray(shard.data))
        elif jax.process_index() == 0:
            yield name, _plain(np.asarray(leaf))


def _plain(array: np.ndarray) -> np.ndarray:
    """Convert an array to bytes if the file format does not support the array's dtype."""
    if array.dtype.kind in _KINDS and array.dtype != np.complex128:
        return np.ascontiguousarray(array)
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _groups(arrays: Mapping[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    """Divide arrays into groups of at most `_PART` bytes; a larger array is a group by itself."""
    group: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        if group and sum(a.nbytes for a in group.values()) + array.nbytes > _PART:
            yield group
            group = {}
        group[name] = array
    if group:
        yield group


def _part(path: BucketPath, name: str, entry: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the arrays in one object under NAME.parts/.

    Raises:
      Damaged: the object is missing or changed.
    """
    part = path.with_name(f"{path.stem}.parts") / name
    stored = part.store.read(part.key)
    if stored is None or hashlib.sha256(stored.data).hexdigest() != entry["sha256"]:
        raise Damaged(f"{part} is damaged: {'missing' if stored is None else 'it has changed'}")
    return safetensors.numpy.load(stored.data)


class _Shards:
    """The arrays of a piece, each whole or in shards; an object with shards is read when needed."""

    def __init__(
        self, path: BucketPath, arrays: Mapping[str, np.ndarray], parts: Mapping[str, Any]
    ):
        self._path, self._arrays, self._parts = path, arrays, parts
        self._where: dict[str, list[tuple[Slices | None, str, str]]] = {}
        for part, entry in {**parts, "": {"arrays": list(arrays)}}.items():
            for full in entry["arrays"]:
                name, at, bounds = full.rpartition("@")
                where = _slices(bounds) if at else None
                self._where.setdefault(name if at else full, []).append((where, part, full))
        self._read = functools.lru_cache(maxsize=4)(self._read_part)

    def _read_part(self, part: str) -> Mapping[str, np.ndarray]:
        return _part(self._path, part, self._parts[part]) if part else self._arrays

    def leaf(self, name: str, like: Any) -> Any:
        """Return the array `name` with the sharding of `like`, or as NumPy if `like` has none."""
        is_key = jnp.issubdtype(like.dtype, jax.dtypes.prng_key)
        data = jax.eval_shape(jax.random.key_data, like) if is_key else like
        read = functools.partial(self._slice, name, data.shape, np.dtype(data.dtype))
        sharding = getattr(like, "sharding", None)
        if is_key:
            whole = jnp.asarray(read(tuple(slice(0, n) for n in data.shape)))
            key = jax.random.wrap_key_data(whole, impl=like.dtype._impl)
            return key if sharding is None else jax.device_put(key, sharding)
        if sharding is None:
            return read(tuple(slice(0, n) for n in data.shape))
        return jax.make_array_from_callback(data.shape, sharding, read)

    def _slice(
        self, name: str, shape: tuple[int, ...], dtype: np.dtype, index: Slices
    ) -> np.ndarray:
        """Return a slice of an array, put together from the shards that overlap the slice."""
        first = [range(n)[s].start for n, s in zip(shape, index, strict=True)]
        result = np.empty([len(range(n)[s]) for n, s in zip(shape, index, strict=True)], dtype)
        left = result.size
        for where, part, full in self._where.get(name, ()):
            begin = [s.start for s in where] if where else [0] * len(shape)
            size = [s.stop - s.start for s in where] if where else list(shape)
            low = np.maximum(begin, first).astype(int)  # start of the overlap in the whole array
            high = np.minimum(np.add(begin, size), np.add(first, result.shape)).astype(int)
            if np.any(low >= high):
                continue
            array = self._read(part)[full]
            fits = array.nbytes == math.prod(size) * dtype.itemsize
            if not fits or array.dtype not in (dtype, np.uint8):
                break
            array = array.reshape(-1).view(dtype).reshape(size)
            result[_span(low, high, first)] = array[_span(low, high, begin)]
            left -= math.prod(high - low)
        if left:
            raise Damaged(f"{self._path} is damaged: it has no whole array {name} {shape}")
        return result


def _span(low: np.ndarray, high: np.ndarray, start: list[int]) -> Slices:
    """Return the slices for the indices `low` to `high` within a shard that begins at `start`."""
    return tuple(slice(*pair) for pair in zip(low - start, high - start, strict=True))


def _slices(text: str) -> Slices:
    """Parse the bounds of a shard: '0:4,8:16' gives ``(slice(0, 4), slice(8, 16))``."""
    return tuple(slice(*map(int, part.split(":"))) for part in text.split(",") if part)
