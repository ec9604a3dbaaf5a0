"""A ticket's file: safetensors of bytes, and one JSON entry with its own checksum."""

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from slth_jax import checks, storage
from slth_jax.storage import CheckpointError, Damaged
from slth_jax.ticket.record import IMPL, Ticket

SUFFIX = ".ticket.safetensors"
_FORMAT = 1


class Stored(Mapping[str, np.ndarray]):
    """The tensors of a safetensors file by name, each read when it is asked for."""

    def __init__(self, path: Path):
        """Read the names of the tensors."""
        self.path = path
        with _telling(path), safetensors.safe_open(path, "numpy") as opened:
            self._names = sorted(opened.keys())

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._names:
            raise KeyError(name)
        with _telling(self.path), safetensors.safe_open(self.path, "numpy") as opened:
            return opened.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@contextlib.contextmanager
def _telling(path: Path) -> Iterator[None]:
    """Turn what safetensors raises into one line about `path`."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {storage.reason(error)}") from error
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{path} is no whole ticket: {storage.reason(error)}") from error


def save(path: str | os.PathLike[str], ticket: Ticket, *, overwrite: bool = False) -> None:
    """Write a ticket as one safetensors file, atomically; the same bytes for the same ticket.

    Raises:
      ValueError: `path` does not end in '.ticket.safetensors'.
      CheckpointError: it cannot be written, or another file is there and `overwrite` is not set.

    Examples:
      >>> import tempfile
      >>> import jax
      >>> from slth_jax import initializers, ticket
      >>> options = {"num_heads": 1, "d_in": 2, "d_out": 2, "n_k": 64, "n_v": 64}
      >>> source = initializers.theory_attention(jax.random.key(3, impl=ticket.IMPL), **options)
      >>> masks = jax.tree.map(lambda w: w > 0, source)
      >>> found = ticket.create("theory", options, 3, masks)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save(f"{folder}/mine.ticket.safetensors", found)
      ...     again = load(f"{folder}/mine.ticket.safetensors")
      >>> again.recipe
      "source 'theory' with seed 3 and d_in=2, d_out=2, n_k=64, n_v=64, num_heads=1"
      >>> weights = ticket.materialize(again)  # drawn anew from the seed, and masked
      >>> bool((weights.w_q == source.w_q * masks.w_q).all())
      True
    """
    path = Path(path)
    if not path.name.endswith(SUFFIX):
        raise checks.fail("path", f"NAME{SUFFIX}", repr(str(path)))
    entry = header(
        source=ticket.source,
        options=ticket.options,
        seed=ticket.seed,
        shapes=ticket.shapes,
        masks_sha256=_masks_sum(ticket.bits),
        fingerprint=ticket.fingerprint,
        metadata=ticket.metadata,
    )
    data = safetensors.numpy.save(dict(sorted(ticket.bits.items())), metadata=entry)
    if path.exists():
        if storage.read_bytes(path) == data:
            return
        if not overwrite:
            raise CheckpointError(f"{path} is there and differs; pass overwrite=True to replace it")
    storage.write_bytes(path, data)


def header(
    *,
    source: str,
    options: Mapping[str, Any],
    seed: int,
    shapes: Mapping[str, Sequence[int]],
    masks_sha256: str,
    fingerprint: str,
    metadata: Mapping[str, Any],
) -> dict[str, str]:
    """Return the metadata of a ticket's file, with its own checksum.

    One entry: safetensors writes several in no fixed order, and the bytes must repeat.
    """
    fields = {
        "format": _FORMAT,
        "impl": IMPL,
        "source": source,
        "options": options,
        "seed": seed,
        "shapes": {name: list(shape) for name, shape in shapes.items()},
        "masks_sha256": masks_sha256,
        "fingerprint": fingerprint,
        "metadata": metadata,
    }
    text = json.dumps(storage.plain(fields), sort_keys=True)
    return {"ticket": f"{hashlib.sha256(text.encode()).hexdigest()} {text}"}


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the fields that `header` made a file's metadata of, without reading its masks.

    Raises:
      Damaged: it is no ticket, or its header or its length is not what was written.
      CheckpointError: it is missing or of a later format.
    """
    path = Path(path)
    with _telling(path):
        with safetensors.safe_open(path, "numpy") as opened:
            entry = (opened.metadata() or {})["ticket"]
        recorded, _, text = entry.partition(" ")
        fields = json.loads(text)
    if hashlib.sha256(text.encode()).hexdigest() != recorded:
        raise Damaged(f"{path} is damaged: the checksum of its header does not match")
    if fields["format"] != _FORMAT or fields["impl"] != IMPL:
        raise CheckpointError(
            f"{path} has format {fields['format']} with {fields['impl']} keys; "
            f"this version reads format {_FORMAT} with {IMPL}"
        )
    return fields


def open(path: str | os.PathLike[str], *, check: bool = False) -> Ticket:
    """Return the ticket in a file, its masks left there until each is asked for.

    The header's checksum is verified, and with `check` that of the masks too, one at a time.

    Raises:
      Damaged, CheckpointError: as `load`.
    """
    fields = read_header(path)
    bits = Stored(Path(path))
    if check and _masks_sum(bits) != fields["masks_sha256"]:
        raise Damaged(f"{path} is damaged: the checksum of its masks does not match")
    return Ticket(
        source=fields["source"],
        options=fields["options"],
        seed=fields["seed"],
        bits=bits,
        shapes={name: tuple(shape) for name, shape in fields["shapes"].items()},
        fingerprint=fields["fingerprint"],
        metadata=fields["metadata"],
    )


def load(path: str | os.PathLike[str]) -> Ticket:
    """Return the ticket in a file; its checksums are verified, its weights not generated.

    Raises:
      Damaged: the file is not, byte for byte in what it says, one that `save` wrote.
      CheckpointError: it is missing or of a later format.
    """
    found = open(path, check=True)
    return dataclasses.replace(found, bits=dict(found.bits))


def masks_sum(masks: Iterable[tuple[str, tuple[int, ...], Iterable[np.ndarray]]]) -> str:
    """Return the SHA-256 of packed masks: (name, shape, bytes block by block), sorted by name."""
    digest = hashlib.sha256()
    for name, shape, blocks in masks:
        digest.update(f"{name} uint8 {shape}\n".encode())
        for block in blocks:
            digest.update(np.ascontiguousarray(block).data)
    return digest.hexdigest()


def _masks_sum(bits: Mapping[str, np.ndarray]) -> str:
    read = ((name, bits[name]) for name in sorted(bits))
    return masks_sum((name, packed.shape, (packed,)) for name, packed in read)
