"""The record of a ticket, and the weights that it stands for."""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from slth_jax import checks, sources, storage, supermask
from slth_jax.sources import Sources
from slth_jax.storage import CheckpointError, named_leaves
from slth_jax.types import PyTree

IMPL = "threefry2x32"


@dataclasses.dataclass(frozen=True, repr=False)
class Ticket:
    """A subnetwork of a random network.

    Attributes:
      source: the source's name (`sources.SOURCES`).
      options: its keyword arguments, in JSON's types.
      seed: of `jax.random.key(seed, impl='threefry2x32')`.
      bits: the masks by name, packed as `supermask.pack` does it, uint8; in memory, or read from
        the ticket's file one at a time.
      shapes: the shapes of the masks by name.
      fingerprint: SHA-256 of the source's weights.
      metadata: anything else worth keeping, in JSON's types: error, target, versions.
    """

    source: str
    options: dict[str, Any]
    seed: int
    bits: Mapping[str, np.ndarray]
    shapes: dict[str, tuple[int, ...]]
    fingerprint: str
    metadata: dict[str, Any]

    @property
    def size(self) -> int:
        """The number of connections that are masked, kept or not."""
        return sum(map(math.prod, self.shapes.values()))

    def __repr__(self) -> str:
        told = f"{self.recipe}: {len(self.shapes)} masks of {self.size:,} connections"
        error = self.metadata.get("error")
        return f"Ticket({told}{'' if error is None else f', error {error:.3g}'})"

    @property
    def recipe(self) -> str:
        """What the weights are generated from, in words."""
        options = ", ".join(f"{name}={value}" for name, value in self.options.items())
        return f"source {self.source!r} with seed {self.seed} and {options[:300]}"


@runtime_checkable
class Rows(Protocol):
    """What `from_row` needs of a sweep's results."""

    def row(self, index: int) -> dict[str, Any]:
        """Return a row's values, its seed and its metrics."""

    def arrays(self, index: int) -> Any:
        """Return a row's masks."""


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
      source: the name of a source in `sources`.
      options: its keyword arguments, without the key.
      seed: in [0, 2^32).
      masks: booleans in the tree of the source's weights; a leaf that is None or left out of a
        dict is not masked.
      weights: those that the masks were found for, compared with the recipe's bit for bit.
      metadata: see `Ticket`.
      sources: sources by name, records or functions `draw(key, **options)`; None for
        `sources.SOURCES`.

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
        raise checks.fail("weights", f"what {ticket.recipe} generates", "other numbers")
    return ticket


def from_row(
    results: Rows,
    index: int,
    source: str,
    options: Mapping[str, Any],
    *,
    masks: Callable[[Any], PyTree] = lambda arrays: arrays,
    metadata: Mapping[str, Any] | None = None,
    sources: Sources | None = None,
) -> Ticket:
    """Return the ticket that one trial of a sweep found.

    The seed is the row's; the row's values and metrics become the metadata, with the dtype that
    `error` was measured in. Masks that the trial padded are cut to the shapes of the source's
    weights, and arrays that the source has no weights for are left out.

    Args:
      results: of `sweep.run` or `sweep.load`.
      index: the row.
      source, options: as in `create`; an option that the row has a value for is written out, as in
        ``{"n_k": results.row(index)["width"]}``.
      masks: picks the masks from what the trial returned beside its metrics.
      metadata: kept beside the row's values.
      sources: as in `create`.

    Raises:
      ValueError: as `create`; or a connection is kept outside the source's weights.
      CheckpointError: this process draws other random numbers than the sweep did, so that the
        recorded error would be another network's.
    """
    check_draws = getattr(results, "check_draws", None)
    if check_draws is not None:
        check_draws()
    row = results.row(index)
    seed = row.pop("seed")
    found = named_leaves(masks(results.arrays(index)))
    recipe = Ticket(source, dict(options), seed, {}, {}, "", {})
    try:
        shapes = _shapes(_draw(recipe, sources), recipe)
    except CheckpointError as error:
        raise ValueError(str(error)) from error
    cut = {}
    for name in found.keys() & shapes.keys():
        mask = np.asarray(found[name])
        cut[name] = mask[tuple(map(slice, shapes[name]))] if mask.ndim else mask
        if np.sum(cut[name]) != np.sum(mask):
            came = f"connections beyond {shapes[name]}, in {mask.shape}"
            raise checks.fail(f"masks.{name}", f"within the weights of {recipe.recipe}", came)
    if not cut:
        raise checks.fail("masks", f"named as the weights {sorted(shapes)}", sorted(found))
    measured = getattr(results, "metrics", {}).get("error")
    dtype = {} if measured is None else {"dtype": str(measured.dtype)}
    told = {**row, **dtype, **(metadata or {})}
    return create(source, options, seed, storage.nested(cut), metadata=told, sources=sources)


def mask(ticket: Ticket, name: str) -> np.ndarray:
    """Return one mask by its name ('w_q', 'layers.0.w_v'), booleans."""
    return np.asarray(supermask.unpack(ticket.bits[name], ticket.shapes[name]))


def masks(ticket: Ticket) -> dict[str, np.ndarray]:
    """Return all masks by name."""
    return {name: mask(ticket, name) for name in ticket.shapes}


def materialize(ticket: Ticket, *, sources: Sources | None = None) -> PyTree:
    """Return the ticket's weights, source times masks, in the tree of the source.

    They are generated on the CPU where there is one beside other devices: bits on others may
    differ. A source without a tree gives a dict of NumPy arrays.

    Raises:
      CheckpointError: the source is unknown, refuses its options, has no weights of the masks'
        names and shapes, or generates other weights than those that the masks were found for.
    """
    source = _source(ticket, sources)
    if source.masked is not None:
        return dict(source.masked(ticket))
    drawn = _genuine(ticket, sources)
    names = iter(named_leaves(drawn))
    return jax.tree.map(lambda leaf: _masked(leaf, next(names), ticket), drawn)


def weights(ticket: Ticket, *, sources: Sources | None = None) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the ticket's weights by name, one at a time; errors as in `materialize`."""
    source = _source(ticket, sources)
    if source.masked is not None:
        yield from source.masked(ticket)
        return
    for name, leaf in named_leaves(_genuine(ticket, sources)).items():
        yield name, np.asarray(_masked(leaf, name, ticket))


def _masked(leaf: jax.Array, name: str, ticket: Ticket) -> jax.Array:
    if name not in ticket.shapes:
        return leaf
    return jnp.where(mask(ticket, name), leaf, jnp.zeros((), leaf.dtype))


def _genuine(ticket: Ticket, sources: Sources | None) -> PyTree:
    """Return the source's weights, which must be those of the ticket."""
    drawn = _generate(ticket, sources)
    if _fingerprint(drawn) != ticket.fingerprint:
        made = ticket.metadata.get("versions", "an unrecorded version")
        raise CheckpointError(
            f"{ticket.recipe} generates other weights here (jax {jax.__version__}) than those "
            f"of the ticket (made with {made})"
        )
    return drawn


def _generate(ticket: Ticket, sources: Sources | None) -> PyTree:
    """Return the source's weights, after comparing their names and shapes with the masks'."""
    draw = _draw(ticket, sources)
    shapes = _shapes(draw, ticket)
    for name, shape in ticket.shapes.items():
        if shapes.get(name) != shape:
            has = shapes.get(name, f"no such weight, but {sorted(shapes)}")
            raise CheckpointError(f"mask {name} has shape {shape}; {ticket.recipe} has {has}")
    with jax.default_device(_cpu()):
        return draw(jax.random.key(ticket.seed, impl=IMPL))


def _shapes(draw: Callable[..., PyTree], ticket: Ticket) -> dict[str, tuple[int, ...]]:
    try:
        with jax.default_device(_cpu()):
            drawn = jax.eval_shape(draw, jax.random.key(ticket.seed, impl=IMPL))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{ticket.recipe} is refused: {storage.reason(error)}") from error
    return {name: tuple(leaf.shape) for name, leaf in named_leaves(drawn).items()}


def _source(ticket: Ticket, known: Sources | None) -> sources.Source:
    try:
        return sources.get(ticket.source, known)
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def _draw(ticket: Ticket, known: Sources | None) -> Callable[..., PyTree]:
    draw = _source(ticket, known).draw
    if draw is None:
        raise CheckpointError(f"{ticket.recipe} is not drawn as one tree of weights")
    return functools.partial(draw, **ticket.options)


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
