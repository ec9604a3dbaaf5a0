"""Compute the weights of a ticket whose source is a whole random transformer."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from slth_jax import checks
from slth_jax.factored import assemble, products
from slth_jax.factored.network import Network
from slth_jax.factored.part import Part
from slth_jax.factored.spec import Spec, from_json
from slth_jax.models import Settings
from slth_jax.storage import CheckpointError, reason

KEPT = "kept."  # the prefix of the names of matrices copied from the target
ROWS = "rows"  # the name of the array with the scale levels of all rows, part by part
COLUMNS = "columns"  # the name of the array with the scale levels of all columns


def packed_levels(levels: UInt8[np.ndarray, " rows"]) -> UInt8[np.ndarray, " bytes"]:
    """Pack scale levels of 4 bits each, two per byte."""
    pairs = np.pad(levels, (0, levels.size % 2)).reshape(-1, 2)
    return pairs[:, 0] << 4 | pairs[:, 1]


def of_ticket(ticket: Any) -> Network:
    """Return the network of a `ticket.Ticket`; check first that its masks fit its options.

    The file must contain a mask or a copied matrix for every part. A small damaged file therefore
    cannot cause the allocation of a huge network.

    Raises:
      CheckpointError: the options are not those of a `Spec`, or the ticket's masks, copied matrices
        or scales do not fit the parts of the spec.
    """
    try:
        fields = dict(ticket.options)
        scales = fields.pop("scales")
        kept = {name: ticket.bits[name].size for name in ticket.bits if name.startswith(KEPT)}
        # Checked first, so that the number of blocks cannot exceed the number of masks in the file.
        num_blocks, most = fields["settings"]["num_blocks"], len(ticket.shapes) + len(kept)
        if not isinstance(num_blocks, int) or num_blocks > most:
            raise checks.fail("num_blocks", f"at most {most}, the number of masks", num_blocks)
        spec = from_json(fields)
        _compare(
            "masks",
            {name: tuple(shape) for name, shape in ticket.shapes.items()},
            {part.name: part.shape for part in spec.parts},
        )
        _compare(
            "choices",
            dict(ticket.choices),
            {part.name: part.band.bits for part in spec.parts if part.band is not None},
        )
        _compare("kept", kept, {KEPT + part.name: 4 * part.num_sums for part in spec.kept_parts})
        counts = {
            ROWS: [spec.num_levels(part) for part in spec.parts],
            COLUMNS: [spec.num_column_levels(part) for part in spec.parts],
        }
        for name, numbers in counts.items():
            num_bytes = ticket.bits[name].size if name in ticket.bits else 0
            _compare("levels of", {name: num_bytes}, {name: -(-sum(numbers) // 2)})
        for name, values in scales.items():
            for value in values:
                checks.number(f"scales.{name}", value, low=0)
        given = {name: len(values) for name, values in scales.items()}
        _compare("scales", given, {part.name: part.count for part in spec.parts})
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise CheckpointError(f"the ticket's spec is refused: {reason(error)}") from error
    rows, columns = (_levels(ticket, name, spec, numbers) for name, numbers in counts.items())
    return Network(spec, ticket.seed, scales, rows, columns)


def _levels(
    ticket: Any, name: str, spec: Spec, counts: Sequence[int]
) -> dict[str, UInt8[np.ndarray, "count levels"]]:
    """Return a dict from the name of each part to the scale levels of its rows or columns."""
    if not any(counts):
        return {}
    packed = ticket.bits[name]
    whole = np.stack([packed >> 4, packed & 15], axis=1).ravel()[: sum(counts)]
    parts = zip(spec.parts, np.split(whole, np.cumsum(counts)[:-1]), strict=True)
    return {part.name: x.reshape(part.count, -1) for part, x in parts if x.size}


def _compare(what: str, given: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    for name in sorted(given.keys() | expected.keys()):
        if given.get(name) != expected.get(name):
            allowed, value = (x.get(name, "absent") for x in (expected, given))
            raise checks.fail(f"{what} {name!r}", str(allowed), value)


def fingerprint(network: Network) -> str:
    """Return one SHA-256 of the fingerprints of all products (see `products.fingerprint`)."""
    digest = hashlib.sha256()
    for part in network.spec.parts:
        for g, scale in enumerate(network.scales[part.name]):
            key = products.product_key(network.seed, part, g)
            line = f"{part.name} {g} {products.fingerprint(key, part, scale)}\n"
            digest.update(line.encode())
    return digest.hexdigest()


def materialize(
    network: Network, bits: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], Settings]:
    """Return the masked weights, with separate factors, and the settings of the model.

    The result can be passed to `models.decoder`. If attention is merged, its heads are as wide as
    the number of hidden units. All other maps are products of two matrices. The function holds all
    parameters in memory at once, so use it for small models.

    Raises:
      CheckpointError: some parts were copied from the target, so they have no factors.
    """
    spec = network.spec
    if spec.keep:
        raise CheckpointError(f"the source must be random in all parts, got keep={spec.keep}")

    def factors(part: Part) -> tuple[np.ndarray, np.ndarray]:
        packed = np.asarray(bits[part.name]).reshape(part.count, -1)
        left, right = [], []
        for g in range(part.count):
            columns = network.column_scales(part, g)
            product = products.draw(network.seed, part, g, spec.rule(part), columns)
            rows = network.row_numbers(part, g), network.row_scales(part, g)
            left.append(products.masked_left(product, part, *rows, packed[g]))
            right.append(products.masked_right(product, part))
        return np.stack(left), np.stack(right)

    return assemble.masked(spec, factors), assemble.masked_settings(spec)
