"""Read and write a ticket's file: a safetensors file of packed masks, with a JSON header.

A mask in which few or nearly all bits are ones can be stored as a zlib stream (version 2 of the
file format). Checksums are computed from uncompressed masks, so they do not depend on compression.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy
from jaxtyping import UInt8

from slth_jax import checks, storage
from slth_jax.construction import choices
from slth_jax.storage import CheckpointError, Damaged
from slth_jax.ticket.record import IMPL, Ticket

SUFFIX = ".ticket.safetensors"
LEVELS = ("rows", "columns")  # scale levels, in tickets of whole models
_FORMATS = (1, 2)  # without and with compressed masks
_SMALLER = 0.95  # a mask is compressed if the result has at most this fraction of its bytes
_RATIO = 1032  # the largest factor by which zlib expands a stream
_COMPACT = (",", ":")  # separators in JSON: they save a kilobyte in a small model's file
_NAME = re.compile(r"[\w.\- ]{0,200}")  # names of sources, options, masks
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Tensor(NamedTuple):
    """A one-dimensional array of bytes that is written block by block.

    Attributes:
      size: the number of bytes.
      blocks: a function that returns the blocks of bytes.
      compressed: whether the file stores the bytes as a zlib stream, which is built in memory.
    """

    size: int
    blocks: Callable[[], Iterable[np.ndarray]]
    compressed: bool = False


class Stored(Mapping[str, np.ndarray]):
    """A mapping from name to tensor of a safetensors file; a tensor is read when it is accessed."""

    def __init__(self, path: storage.Place, file: storage.Local, whole: Mapping[str, int]):
        """Read the names, dtypes and sizes of all tensors; set `sizes` to their numbers of bytes.

        `path` is used in error messages, `file` is the local file with the bytes, and `whole` maps
        the names of compressed tensors to their uncompressed sizes.
        """
        self.path, self._file, self._whole = path, file, whole
        self.sizes: dict[str, int] = {}
        with _reading(path), safetensors.safe_open(file.path, "numpy") as opened:
            for name in sorted(opened.keys()):
                part = opened.get_slice(name)
                if part.get_dtype() != "U8" or len(part.get_shape()) != 1:
                    raise Damaged(f"{path} is no whole ticket: {name!r} is no row of bytes")
                self.sizes[name] = part.get_shape()[0]
        self.num_bytes = sum(self.sizes.values())
        for name, size in whole.items():
            if size > _RATIO * self.sizes.get(name, 0):
                raise Damaged(f"{path} is no whole ticket: mask {name} cannot have {size} bytes")
            self.sizes[name] = size

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.sizes:
            raise KeyError(name)
        with _reading(self.path), safetensors.safe_open(self._file.path, "numpy") as opened:
            stored = opened.get_tensor(name)
            return self._expand(name, stored) if name in self._whole else stored

    def _expand(self, name: str, stored: np.ndarray) -> np.ndarray:
        stream, size = zlib.decompressobj(), self._whole[name]
        # One byte more than expected is read, so that a longer stream is noticed.
        data = stream.decompress(stored.tobytes(), size + 1)
        if len(data) != size or not stream.eof or stream.unused_data:
            raise Damaged(f"{self.path} is damaged: mask {name} does not have {size} bytes")
        return np.frombuffer(data, np.uint8)

    def __iter__(self) -> Iterator[str]:
        return iter(self.sizes)

    def __len__(self) -> int:
        return len(self.sizes)


@contextlib.contextmanager
def _reading(path: storage.Place) -> Iterator[None]:
    """Turn errors of safetensors and JSON into a one-line error that names `path`."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {storage.reason(error)}") from error
    except (
        safetensors.SafetensorError, ValueError, KeyError, TypeError, RecursionError, MemoryError,
        zlib.error,
    ) as error:  # fmt: skip
        raise Damaged(f"{path} is no whole ticket: {storage.reason(error)}") from error


def save(path: str | os.PathLike[str], ticket: Ticket, *, overwrite: bool = False) -> None:
    """Write a ticket atomically as one safetensors file; equal tickets give equal bytes.

    Masks in which few or nearly all bits are ones are compressed by zlib. A file that already
    contains the same ticket, compressed or not, is not changed.

    Raises:
      ValueError: `path` does not end in '.ticket.safetensors'.
      CheckpointError: the file cannot be written, or a file with other content exists and
        `overwrite` is not set.

    Examples:
      >>> import tempfile
      >>> import jax
      >>> from slth_jax import initializers, ticket
      >>> options = {"num_heads": 1, "d_in": 2, "d_out": 2, "n_k": 64, "n_v": 64}
      >>> source = initializers.theory_attention(jax.random.key(3, impl=ticket.IMPL), **options)
      >>> masks = jax.tree.map(lambda w: w > 0, source)
      >>> mine = ticket.create("theory", options, 3, masks)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save(f"{folder}/mine.ticket.safetensors", mine)
      ...     again = load(f"{folder}/mine.ticket.safetensors")
      >>> again.origin
      "source 'theory' with seed 3 and d_in=2, d_out=2, n_k=64, n_v=64, num_heads=1"
      >>> weights = ticket.materialize(again)  # drawn again from the seed, and masked
      >>> bool((weights.w_q == source.w_q * masks.w_q).all())
      True
    """
    path = storage.place(path)
    if not path.name.endswith(SUFFIX):
        raise checks.fail("path", f"NAME{SUFFIX}", repr(str(path)))
    tensors = stored(ticket.bits)
    smaller = [name for name in ticket.bits if tensors[name].size < ticket.bits[name].size]
    entry = _header(ticket, _masks_sum(ticket.bits), compressed=smaller)
    data = safetensors.numpy.save(tensors, metadata=entry)
    if storage.write_new(path, data) or storage.read_bytes(path) == data or _has(path, ticket):
        return
    if not overwrite:
        raise CheckpointError(f"{path} exists and differs; pass overwrite=True to replace it")
    storage.write_bytes(path, data)


def _has(path: storage.Place, ticket: Ticket) -> bool:
    """Return whether a file contains this ticket, with or without compressed masks."""
    try:
        open(path, check=True)
        fields = read_header(path)
    except CheckpointError:
        return False
    text = _header(ticket, _masks_sum(ticket.bits))["ticket"].partition(" ")[2]
    return all(fields[n] == value for n, value in json.loads(text).items() if n != "format")


def stored(bits: Mapping[str, Any]) -> dict[str, UInt8[np.ndarray, " bytes"]]:
    """Return packed masks as `save` stores them: compressed if that saves at least 5 %."""
    tensors = {}
    for name in sorted(bits):
        whole = np.asarray(bits[name])
        smaller = _compress([whole])
        tensors[name] = smaller if smaller.size <= _SMALLER * whole.size else whole
    return tensors


def write(path: storage.Place, ticket: Ticket, tensors: Mapping[str, Tensor]) -> None:
    """Write a ticket atomically; tensors are read twice, in blocks, to save memory.

    Args:
      path: the file.
      ticket: the ticket; its `bits` are ignored, and `tensors` is written instead.
      tensors: the packed masks and any other bytes, by name.
    """
    names = sorted(tensors)
    blocks = ((n, "uint8", (tensors[n].size,), tensors[n].blocks()) for n in names)
    masks_sum = storage.stream_hash(blocks)
    smaller = {n: _compress(tensors[n].blocks()) for n in names if tensors[n].compressed}
    table: dict[str, Any] = {"__metadata__": _header(ticket, masks_sum, _COMPACT, smaller)}
    start = 0
    for name in names:
        end = start + (smaller[name].size if name in smaller else tensors[name].size)
        table[name] = {"dtype": "U8", "shape": [end - start], "data_offsets": [start, end]}
        start = end
    text = json.dumps(table, separators=_COMPACT).encode()  # sorted, for equal bytes
    text += b" " * (-len(text) % 8)
    with storage.writing(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            for block in (smaller[name],) if name in smaller else tensors[name].blocks():
                file.write(np.ascontiguousarray(block).data)


def _compress(blocks: Iterable[np.ndarray]) -> np.ndarray:
    """Compress blocks with zlib in two ways; return the bytes of the shorter stream.

    If a tenth or more of the connections is kept, a stream of Huffman codes alone is at most 2 %
    longer than the entropy of the mask. If fewer connections are kept, zlib's references to
    repeated bytes give a shorter stream.
    """
    ways = [
        zlib.compressobj(9, strategy=strategy)
        for strategy in (zlib.Z_HUFFMAN_ONLY, zlib.Z_DEFAULT_STRATEGY)
    ]
    streams: list[list[bytes]] = [[] for _ in ways]
    for block in blocks:
        for way, stream in zip(ways, streams, strict=True):
            stream.append(way.compress(np.ascontiguousarray(block).data))
    whole = [b"".join([*s, way.flush()]) for way, s in zip(ways, streams, strict=True)]
    return np.frombuffer(min(whole, key=len), np.uint8)


def _header(
    ticket: Ticket,
    masks_sha256: str,
    separators: tuple[str, str] | None = None,
    compressed: Iterable[str] = (),
) -> dict[str, str]:
    """Return the metadata of a ticket's file: one JSON entry that contains its own checksum.

    There is only one entry because safetensors writes several entries in an arbitrary order, and
    equal tickets must give equal bytes.
    """
    fields = {
        "format": 1,
        "impl": IMPL,
        "source": ticket.source,
        "options": ticket.options,
        "seed": ticket.seed,
        "shapes": {name: list(shape) for name, shape in ticket.shapes.items()},
        "masks_sha256": masks_sha256,
        "fingerprint": ticket.fingerprint,
        "metadata": ticket.metadata,
    }
    if ticket.choices:
        fields["choices"] = dict(ticket.choices)
    if compressed:
        fields |= {"format": 2, "compressed": sorted(compressed)}
    text = json.dumps(storage.plain(fields), sort_keys=True, separators=separators)
    return {"ticket": f"{hashlib.sha256(text.encode()).hexdigest()} {text}"}


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the fields of a ticket's header without reading its masks.

    Raises:
      Damaged: the file is not a ticket, or its header or its length has changed.
      CheckpointError: the file is missing or has a later format.
    """
    path = storage.place(path)
    return _fields(path, storage.Local(path))


def _fields(path: storage.Place, file: storage.Local) -> dict[str, Any]:
    """Return the checked header of `file`, the local copy of `path`."""
    with _reading(path):
        with safetensors.safe_open(file.path, "numpy") as opened:
            entry = (opened.metadata() or {})["ticket"]
        recorded, _, text = entry.partition(" ")
        fields = json.loads(text)
        if hashlib.sha256(text.encode()).hexdigest() != recorded:
            raise Damaged(f"{path} is damaged: the checksum of its header does not match")
        if fields["format"] not in _FORMATS or fields["impl"] != IMPL:
            raise CheckpointError(
                f"{path} has format {fields['format']!r} with {fields['impl']!r} keys; "
                f"this version reads formats up to {_FORMATS[-1]} with {IMPL}"
            )
        _check_header(fields)
    return fields


def _check_header(fields: Any) -> None:
    """Raise an error if a field of a header is invalid; `open` checks the sizes of masks."""
    for name, kind in (
        ("source", str), ("options", dict), ("shapes", dict), ("masks_sha256", str),
        ("fingerprint", str), ("metadata", dict),
    ):  # fmt: skip
        if not isinstance(fields[name], kind):
            raise checks.fail(name, f"of type {kind.__name__}", type(fields[name]).__name__)
    for name in (fields["source"], *fields["options"], *fields["shapes"], *fields["metadata"]):
        if not _NAME.fullmatch(name):
            raise checks.fail("names", "up to 200 letters, digits, '_', '.', '-'", repr(name[:60]))
    checks.integer("seed", fields["seed"], low=0, high=2**32 - 1)
    for name, shape in fields["shapes"].items():
        if not isinstance(shape, list) or len(shape) > 16:
            raise checks.fail(f"shapes.{name}", "a list of at most 16 integers", type(shape))
        for size in shape:
            checks.integer(f"shapes.{name}", size, low=0)
    for name, bits in fields.setdefault("choices", {}).items():
        checks.integer(f"choices.{name}", bits, low=1, high=12)
        if not fields["shapes"][name] or fields["shapes"][name][-1] % 2**bits:
            allowed = f"of a last axis in groups of {2**bits}"
            raise checks.fail(f"shapes.{name}", allowed, fields["shapes"][name])
    names = fields.setdefault("compressed", [])
    if not isinstance(names, list) or not all(name in fields["shapes"] for name in names):
        raise checks.fail("compressed", "a list of masks", repr(names)[:80])
    if not _SHA256.fullmatch(fields["masks_sha256"]):
        raise checks.fail(
            "masks_sha256", "64 hexadecimal digits", repr(fields["masks_sha256"][:80])
        )
    if len(fields["fingerprint"]) > 200 or not fields["fingerprint"].isprintable():
        raise checks.fail("fingerprint", "a checksum", f"{len(fields['fingerprint'])} characters")


def open(path: str | os.PathLike[str], *, check: bool = False) -> Ticket:
    """Return the ticket in a file; each mask is read from the file only when it is accessed.

    The header's checksum and the size of each mask are verified. If `check` is true, the checksum
    of the masks is verified too, by reading one mask at a time.

    Raises:
      Damaged, CheckpointError: as in `load`.
    """
    path = storage.place(path)
    file = storage.Local(path)
    fields = _fields(path, file)
    shapes = {name: tuple(shape) for name, shape in fields["shapes"].items()}
    sizes = {name: -(-math.prod(shape) // 8) for name, shape in shapes.items()}
    for name, number in fields["choices"].items():
        sizes[name] = choices.num_bytes(shapes[name], number)
    bits = Stored(path, file, {name: sizes[name] for name in fields["compressed"]})
    for name in sorted(shapes.keys() | bits.sizes.keys()):
        if name in shapes:
            size, has = sizes[name], bits.sizes.get(name, "no")
            if has != size:
                raise Damaged(f"{path} is no whole ticket: mask {name} has {has} bytes, not {size}")
        elif name not in LEVELS and not name.startswith("kept."):  # see `factored.source`
            raise Damaged(f"{path} is no whole ticket: {name!r} belongs to no mask")
    if check and _masks_sum(bits) != fields["masks_sha256"]:
        raise Damaged(f"{path} is damaged: the checksum of its masks does not match")
    return Ticket(
        source=fields["source"],
        options=fields["options"],
        seed=fields["seed"],
        bits=bits,
        shapes=shapes,
        fingerprint=fields["fingerprint"],
        metadata=fields["metadata"],
        choices=fields["choices"],
    )


def load(path: str | os.PathLike[str]) -> Ticket:
    """Return the ticket in a file; verify its checksums, but generate no weights.

    Raises:
      Damaged: the content of the file differs from the content that was saved.
      CheckpointError: the file is missing or has a later format.
    """
    ticket = open(path, check=True)
    return dataclasses.replace(ticket, bits=dict(ticket.bits))


def _masks_sum(bits: Mapping[str, Any]) -> str:
    """Return one SHA-256 of all packed masks, sorted by name."""
    read = ((name, bits[name]) for name in sorted(bits))
    return storage.stream_hash((name, "uint8", packed.shape, (packed,)) for name, packed in read)
