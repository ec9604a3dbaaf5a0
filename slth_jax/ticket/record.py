"""A ticket as a thing: the recipe of its source, one bit a connection, and checksums.

A ticket is source weights times masks. The source is never trained, so a ticket's file holds no
weight: it holds the initializer's name and numbers, the seed, and the packed masks. The weights
are generated anew and compared with the fingerprint of those that the masks were found for.
"""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from slth_jax import checks, initializers, storage, supermask
from slth_jax.storage import CheckpointError, Damaged, named_leaves
from slth_jax.types import PyTree

SUFFIX = ".ticket.safetensors"
IMPL = "threefry2x32"
_FORMAT = 1

# Initializers by name: `initializer(key, **options) -> tree of weights`.
Sources = Mapping[str, Callable[..., PyTree]]


@dataclasses.dataclass(frozen=True)
class Ticket:
    """A subnetwork of a random network.

    Attributes:
      source: the initializer's name.
      options: its keyword arguments, numbers or strings.
      seed: of `jax.random.key(seed, impl='threefry2x32')`.
      bits: the masks by name, packed as `supermask.pack` does it, uint8.
      shapes: the shapes of the masks by name.
      fingerprint: SHA-256 of the source's weights.
      metadata: anything else worth keeping, in JSON's types: target, error, versions.
    """

    source: str
    options: dict[str, Any]
    seed: int
    bits: dict[str, np.ndarray]
    shapes: dict[str, tuple[int, ...]]
    fingerprint: str
    metadata: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Report:
    """What `verify` found in a file that is whole: connections, and how many are kept."""

    ticket: Ticket
    size: int
    num_kept: int


def create(
    source: str,
    options: Mapping[str, Any],
    seed: int,
    masks: PyTree,
    *,
    weights: PyTree | None = None,
    metadata: Mapping[str, Any] | None = None,
    sources: Sources | None = None,
) -> Ticket:
    """Return the ticket of some masks.

    Args:
      source: the name of an initializer in `sources`.
      options: its keyword arguments, without the key.
      seed: in [0, 2^32).
      masks: booleans in the tree of the source's weights; a leaf that is None or left out of a
        dict is not masked.
      weights: those that the masks were found for, compared with the recipe's bit for bit.
      metadata: see `Ticket`.
      sources: initializers by name; None for `initializers.SOURCES` and "gpt2".

    Raises:
      ValueError: an unknown source, options that it refuses, masks of other names or shapes, or
        weights that the recipe does not generate.
    """
    seed = checks.integer("seed", seed, low=0, high=2**32 - 1)
    named = {n: checks.array(f"masks.{n}", m, kind="bool") for n, m in named_leaves(masks).items()}
    ticket = Ticket(
        source=source,
        options=dict(options),
        seed=seed,
        bits={name: np.asarray(supermask.pack(mask)) for name, mask in named.items()},
        shapes={name: tuple(mask.shape) for name, mask in named.items()},
        fingerprint="",
        metadata=storage.plain(metadata or {}),
    )
    try:
        generated = _generate(ticket, sources)
    except CheckpointError as error:
        raise ValueError(str(error)) from error
    ticket = dataclasses.replace(ticket, fingerprint=_fingerprint(generated))
    if weights is not None and _fingerprint(weights) != ticket.fingerprint:
        raise checks.fail("weights", f"what {_recipe(ticket)} generates", "other numbers")
    return ticket


def save(path: str | os.PathLike[str], ticket: Ticket, *, overwrite: bool = False) -> None:
    """Write a ticket as one safetensors file, atomically; the same bytes for the same ticket.

    Raises:
      ValueError: `path` does not end in '.ticket.safetensors'.
      CheckpointError: it cannot be written, or another file is there and `overwrite` is not set.
    """
    path = Path(path)
    if not path.name.endswith(SUFFIX):
        raise checks.fail("path", f"NAME{SUFFIX}", repr(str(path)))
    header = {
        "format": _FORMAT,
        "impl": IMPL,
        "source": ticket.source,
        "options": ticket.options,
        "seed": ticket.seed,
        "shapes": {name: list(shape) for name, shape in ticket.shapes.items()},
        "masks_sha256": _masks_sum(ticket),
        "fingerprint": ticket.fingerprint,
        "metadata": ticket.metadata,
    }
    text = json.dumps(storage.plain(header), sort_keys=True)
    # One entry: safetensors writes several in no fixed order, and the bytes must repeat.
    entry = {"ticket": f"{hashlib.sha256(text.encode()).hexdigest()} {text}"}
    data = safetensors.numpy.save(dict(sorted(ticket.bits.items())), metadata=entry)
    if path.exists():
        if storage.read_bytes(path) == data:
            return
        if not overwrite:
            raise CheckpointError(f"{path} is there and differs; pass overwrite=True to replace it")
    storage.write_bytes(path, data)


def load(path: str | os.PathLike[str]) -> Ticket:
    """Return the ticket in a file; its checksums are verified, its weights not generated.

    Raises:
      Damaged: the file is not, byte for byte in what it says, one that `save` wrote.
      CheckpointError: it is missing or of a later format.
    """
    data = storage.read_bytes(path)
    try:
        bits = safetensors.numpy.load(data)
        size = int.from_bytes(data[:8], "little")
        entry = json.loads(data[8 : 8 + size])["__metadata__"]
        recorded, _, text = entry["ticket"].partition(" ")
        header = json.loads(text)
        good = hashlib.sha256(text.encode()).hexdigest() == recorded
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Damaged(f"{path} is no whole ticket: {reason}") from error
    if not good:
        raise Damaged(f"{path} is damaged: the checksum of its header does not match")
    if header["format"] != _FORMAT or header["impl"] != IMPL:
        raise CheckpointError(
            f"{path} has format {header['format']} with {header['impl']} keys; "
            f"this version reads format {_FORMAT} with {IMPL}"
        )
    ticket = Ticket(
        source=header["source"],
        options=header["options"],
        seed=header["seed"],
        bits=bits,
        shapes={name: tuple(shape) for name, shape in header["shapes"].items()},
        fingerprint=header["fingerprint"],
        metadata=header["metadata"],
    )
    if _masks_sum(ticket) != header["masks_sha256"]:
        raise Damaged(f"{path} is damaged: the checksum of its masks does not match")
    return ticket


def masks(ticket: Ticket) -> dict[str, np.ndarray]:
    """Return the masks by name ('w_q', 'layers.0.w_v'), booleans."""
    return {
        name: np.asarray(supermask.unpack(ticket.bits[name], shape))
        for name, shape in ticket.shapes.items()
    }


def materialize(ticket: Ticket, *, sources: Sources | None = None) -> PyTree:
    """Return the ticket's weights, source times masks, in the tree of the source.

    They are generated on the CPU where there is one beside other devices: bits on others may
    differ.

    Raises:
      CheckpointError: the source is unknown, refuses its options, has no weights of the masks'
        names and shapes, or generates other weights than those that the masks were found for.
    """
    weights = _generate(ticket, sources)
    if _fingerprint(weights) != ticket.fingerprint:
        made = ticket.metadata.get("versions", "an unrecorded version")
        raise CheckpointError(
            f"{_recipe(ticket)} generates other weights here (jax {jax.__version__}) than those "
            f"of the ticket (made with {made})"
        )
    kept = masks(ticket)
    names = iter(named_leaves(weights))
    return jax.tree.map(lambda leaf: _masked(leaf, kept.get(next(names))), weights)


def verify(path: str | os.PathLike[str], *, sources: Sources | None = None) -> Report:
    """Read a ticket, generate its weights, and report what it keeps.

    Raises:
      CheckpointError: one line on the first thing that is wrong (see `load`, `materialize`).
    """
    ticket = load(path)
    try:
        materialize(ticket, sources=sources)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    kept = masks(ticket).values()
    return Report(ticket, sum(m.size for m in kept), sum(int(m.sum()) for m in kept))


def _masked(leaf: jax.Array, mask: np.ndarray | None) -> jax.Array:
    return leaf if mask is None else jnp.where(mask, leaf, jnp.zeros((), leaf.dtype))


def _recipe(ticket: Ticket) -> str:
    options = ", ".join(f"{name}={value}" for name, value in ticket.options.items())
    return f"source {ticket.source!r} with seed {ticket.seed} and {options}"


def _generate(ticket: Ticket, sources: Sources | None) -> PyTree:
    """Return the source's weights, after comparing their names and shapes with the masks'."""
    draw = functools.partial(_initializer(ticket.source, sources), **ticket.options)
    with jax.default_device(_cpu()):
        key = jax.random.key(ticket.seed, impl=IMPL)
        try:
            shapes = {n: tuple(w.shape) for n, w in named_leaves(jax.eval_shape(draw, key)).items()}
        except (TypeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(f"{_recipe(ticket)} is refused: {reason}") from error
        for name, shape in ticket.shapes.items():
            if shapes.get(name) != shape:
                has = shapes.get(name, f"no such weight, but {sorted(shapes)}")
                raise CheckpointError(f"mask {name} has shape {shape}; {_recipe(ticket)} has {has}")
        return draw(key)


def _initializer(name: str, sources: Sources | None) -> Callable[..., PyTree]:
    if sources is None and name == "gpt2":
        # Imported here: Flax takes a second, which tickets of attention need not wait for.
        from slth_jax import gpt2

        return gpt2.source
    known = initializers.SOURCES if sources is None else sources
    if name not in known:
        raise CheckpointError(f"source must be one of {sorted(known)}, got {name!r}")
    return known[name]


def _cpu() -> jax.Device | None:
    """Return the CPU as a JAX device, or None where JAX was told to do without."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None


def _fingerprint(weights: PyTree) -> str:
    """Return the SHA-256 of a tree's names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name, leaf in sorted(named_leaves(weights).items()):
        value = np.asarray(leaf)
        digest.update(f"{name} {value.dtype} {value.shape}\n".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def _masks_sum(ticket: Ticket) -> str:
    digest = hashlib.sha256()
    for name, packed in sorted(ticket.bits.items()):
        digest.update(f"{name} {packed.dtype} {packed.shape}\n".encode())
        digest.update(np.ascontiguousarray(packed).tobytes())
    return digest.hexdigest()
