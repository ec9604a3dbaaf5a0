"""The class `Ticket`, and functions that generate a ticket's weights (source times masks)."""

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from slth_jax import checks, storage, supermask
from slth_jax.construction import choices
from slth_jax.storage import CheckpointError, named_leaves
from slth_jax.ticket.sources import Source, Sources, get, other_weights
from slth_jax.types import PyTree

IMPL = "threefry2x32"
_MAX_UNMASKED = 1 << 28  # 1 GiB in float32


@dataclasses.dataclass(frozen=True, repr=False)
class Ticket:
    """A subnetwork of a random network: the name of a random source, a seed, and masks.

    Attributes:
      source: the name of the source, a key of `ticket.SOURCES`.
      options: the source's keyword arguments, as values that JSON can store.
      seed: the seed of the source's key, `jax.random.key(seed, impl='threefry2x32')`.
      bits: a dict from the name of each mask to its bytes (uint8), as `supermask.pack` returns
        them. The bytes are in memory, or are read from the ticket's file one mask at a time.
      shapes: a dict from the name of each mask to its shape.
      fingerprint: the SHA-256 of the source's weights.
      metadata: a dict of further values that JSON can store, such as the error, the target and
        versions.
      choices: a dict from the name of a mask to an integer b, for masks that keep exactly one of
        every ``2^b`` neighbouring units. The `bits` of these masks are the results of
        `construction.choices.pack`.
    """

    source: str
    options: dict[str, Any]
    seed: int
    bits: Mapping[str, Any]
    shapes: dict[str, tuple[int, ...]]
    fingerprint: str
    metadata: dict[str, Any]
    choices: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def size(self) -> int:
        """The number of connections that have a mask, whether they are kept or not."""
        return sum(map(math.prod, self.shapes.values()))

    def num_kept(self, name: str) -> int:
        """Return the number of ones in a mask."""
        if name in self.choices:
            return math.prod(self.shapes[name]) >> self.choices[name]
        return int(np.bitwise_count(self.bits[name]).sum())

    def __repr__(self) -> str:
        error = self.metadata.get("error")
        ending = f", error {error:.3g}" if isinstance(error, float) else ""
        masks = f"{len(self.shapes)} masks of {self.size:,} connections"
        return f"Ticket({self.origin}: {masks}{ending})"

    @property
    def origin(self) -> str:
        """A text that names the source, the seed and the options."""
        options = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        return f"source {self.source!r} with seed {self.seed} and {options[:300]}"


@runtime_checkable
class Rows(Protocol):
    """A protocol for the results of a sweep: the methods that `from_row` calls."""

    def row(self, index: int) -> dict[str, Any]:
        """Return a dict with the grid values, the seed and the metrics of row `index`."""

    def arrays(self, index: int) -> Any:
        """Return the tree of arrays, such as masks, that belongs to row `index`."""


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
    """Return a `Ticket` with the given source, seed and masks.

    Args:
      source: the name of a source in `sources`.
      options: the source's keyword arguments, without the key.
      seed: the seed, an integer in [0, 2^32).
      masks: booleans in the tree of the source's weights. An array of weights is not masked if
        `masks` has None or no entry in its place.
      weights: the weights for which the masks were found; they are compared bit for bit with the
        source's weights.
      metadata: further values to store, see `Ticket`.
      sources: a dict from name to a `Source` or to a function `draw(key, **options)`; None for
        `ticket.SOURCES`.

    Raises:
      ValueError: the source is unknown or refuses the options, the masks differ from the source's
        weights in names or shapes, or `weights` differ from the weights that the source generates.
    """
    seed = checks.integer("seed", seed, low=0, high=2**32 - 1)
    named = {n: checks.array(f"masks.{n}", m, kind="bool") for n, m in named_leaves(masks).items()}
    ticket = Ticket(
        source=source,
        options=dict(checks.record("options", options, Mapping)),
        seed=seed,
        bits={name: np.asarray(supermask.pack(leaf)) for name, leaf in named.items()},
        shapes={name: tuple(leaf.shape) for name, leaf in named.items()},
        fingerprint="",
        metadata=storage.plain(metadata or {}),
    )
    try:
        generated = _generate(ticket, sources)
    except CheckpointError as error:
        raise ValueError(str(error)) from error
    ticket = dataclasses.replace(ticket, fingerprint=_fingerprint(generated))
    if weights is not None and _fingerprint(weights) != ticket.fingerprint:
        raise checks.fail("weights", f"the weights of {ticket.origin}", "other numbers")
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

    The seed is taken from the trial's row in `results`. The row's values and metrics become the
    metadata, together with the dtype in which `error` was measured. Masks that the trial padded are
    cut to the shapes of the source's weights. Arrays of the trial that correspond to no weights of
    the source are left out.

    Args:
      results: the results of `sweep.run` or `sweep.load`.
      index: the index of the trial's row in `results`.
      source, options: as in `create`. An option may be read from the row, such as ``{"n_k":
        results.row(index)["width"]}``.
      masks: a function that receives the trial's arrays and returns the masks among them.
      metadata: further metadata, which is added to the row's values.
      sources: as in `create`.

    Raises:
      ValueError: `create` would raise an error, or a mask keeps a connection in the padding.
      CheckpointError: this process draws different random numbers than the sweep did, so the error
        in the row would belong to a different network.
    """
    check_draws = getattr(results, "check_draws", None)
    if check_draws is not None:
        check_draws()
    row = results.row(index)
    seed = row.pop("seed")
    padded = named_leaves(masks(results.arrays(index)))
    empty = Ticket(source, dict(options), seed, {}, {}, "", {})
    try:
        shapes = _shapes(_draw(empty, sources), empty)
    except CheckpointError as error:
        raise ValueError(str(error)) from error
    cut = {}
    for name in padded.keys() & shapes.keys():
        leaf = np.asarray(padded[name])
        cut[name] = leaf[tuple(map(slice, shapes[name]))] if leaf.ndim else leaf
        if np.sum(cut[name]) != np.sum(leaf):
            outside = f"connections beyond {shapes[name]}, in {leaf.shape}"
            raise checks.fail(f"masks.{name}", f"within the weights of {empty.origin}", outside)
    if not cut:
        raise checks.fail("masks", f"named as the weights {sorted(shapes)}", sorted(padded))
    errors = getattr(results, "metrics", {}).get("error")
    dtype = {} if errors is None else {"dtype": str(errors.dtype)}
    values = {**row, **dtype, **(metadata or {})}
    return create(source, options, seed, storage.nested(cut), metadata=values, sources=sources)


def mask(ticket: Ticket, name: str) -> np.ndarray:
    """Return the mask with this name, such as 'w_q' or 'layers.0.w_v', as booleans."""
    if name in ticket.choices:
        *rows, units = ticket.shapes[name]
        packed = np.asarray(ticket.bits[name]).reshape(*rows, -1)
        bits = ticket.choices[name]
        return np.asarray(choices.mask(choices.unpack(packed, units >> bits, bits), bits))
    return np.asarray(supermask.unpack(ticket.bits[name], ticket.shapes[name]))


def masks(ticket: Ticket) -> dict[str, np.ndarray]:
    """Return a dict from the name of each mask to the mask, as booleans."""
    return {name: mask(ticket, name) for name in ticket.shapes}


def materialize(ticket: Ticket, *, sources: Sources | None = None) -> PyTree:
    """Return the ticket's weights, source times masks, in the tree of the source.

    The weights are generated on the CPU if JAX can use it, because other devices may generate
    different bits. If the source yields its arrays one at a time, the result is a dict of NumPy
    arrays.

    Raises:
      CheckpointError: the source is unknown or refuses the options, the masks differ from the
        source's weights in names or shapes, or the weights differ from the weights for which the
        masks were found.
    """
    source = _source(ticket, sources)
    if source.masked is not None:
        return dict(source.masked(ticket))
    drawn = _genuine(ticket, sources)
    names = iter(named_leaves(drawn))
    return jax.tree.map(lambda leaf: _masked(leaf, next(names), ticket), drawn)


def weights(ticket: Ticket, *, sources: Sources | None = None) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (name, masked weights) for one array at a time; errors are as in `materialize`."""
    source = _source(ticket, sources)
    if source.masked is not None:
        yield from source.masked(ticket)
        return
    for name, leaf in named_leaves(_genuine(ticket, sources)).items():
        yield name, np.asarray(_masked(leaf, name, ticket))


def check_source(ticket: Ticket, *, sources: Sources | None = None) -> None:
    """Check the source's weights against masks and fingerprint; errors are as in `materialize`."""
    source = _source(ticket, sources)
    if source.check is not None:
        source.check(ticket)
    else:
        next(weights(ticket, sources=sources), None)  # compares weights before it yields the first


def _masked(leaf: jax.Array, name: str, ticket: Ticket) -> jax.Array:
    if name not in ticket.shapes:
        return leaf
    return jnp.where(mask(ticket, name), leaf, jnp.zeros((), leaf.dtype))


def _genuine(ticket: Ticket, sources: Sources | None) -> PyTree:
    """Generate the source's weights; raise an error if their fingerprint is not the ticket's."""
    drawn = _generate(ticket, sources)
    if _fingerprint(drawn) != ticket.fingerprint:
        raise other_weights(ticket)
    return drawn


def _generate(ticket: Ticket, sources: Sources | None) -> PyTree:
    """Check that names and shapes of weights and masks agree; return the source's weights.

    The number of weights without a mask is limited, because otherwise a small file could request
    any amount of memory.
    """
    draw = _draw(ticket, sources)
    shapes = _shapes(draw, ticket)
    for name, shape in ticket.shapes.items():
        if shapes.get(name) != shape:
            has = shapes.get(name, f"no such weight, but {sorted(shapes)}")
            raise CheckpointError(f"mask {name} has shape {shape}; {ticket.origin} has {has}")
    unmasked = sum(math.prod(shapes[name]) for name in shapes.keys() - ticket.shapes.keys())
    most = int(os.environ.get("SLTH_MAX_WEIGHTS", _MAX_UNMASKED))
    if unmasked > most:
        raise CheckpointError(
            f"{ticket.origin} has {unmasked} weights without a mask, more than {most} "
            "(SLTH_MAX_WEIGHTS sets this number)"
        )
    with jax.default_device(_cpu()):
        return draw(jax.random.key(ticket.seed, impl=IMPL))


def _shapes(draw: Callable[..., PyTree], ticket: Ticket) -> dict[str, tuple[int, ...]]:
    try:
        with jax.default_device(_cpu()):
            drawn = jax.eval_shape(draw, jax.random.key(ticket.seed, impl=IMPL))
    except (TypeError, ValueError, OverflowError, MemoryError) as error:
        raise CheckpointError(f"{ticket.origin} is refused: {storage.reason(error)}") from error
    return {name: tuple(leaf.shape) for name, leaf in named_leaves(drawn).items()}


def _source(ticket: Ticket, known: Sources | None) -> Source:
    try:
        return get(ticket.source, known)
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def _draw(ticket: Ticket, known: Sources | None) -> Callable[..., PyTree]:
    draw = _source(ticket, known).draw
    if draw is None:
        raise CheckpointError(f"{ticket.origin} is not drawn as one tree of weights")
    return functools.partial(draw, **ticket.options)


def _cpu() -> jax.Device | None:
    """Return the CPU as a JAX device, or None if JAX was started without it."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None


def _fingerprint(weights: PyTree) -> str:
    """Return one SHA-256 of the names, dtypes, shapes and bytes of all arrays in a tree."""
    return storage.array_hash(named_leaves(weights))
