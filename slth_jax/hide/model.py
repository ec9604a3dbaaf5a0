"""Read models block by block: a trained model from its files, or the network of a ticket."""

import os
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from slth_jax import checks, ticket
from slth_jax.factored import Network, Part, Spec, assemble, products, source
from slth_jax.models import Settings
from slth_jax.models.weights import Reader, stacked
from slth_jax.ticket import Ticket
from slth_jax.types import Array

NAME = "ticket.safetensors"
SOURCE = "decoder"
Arrays = Mapping[str, np.ndarray]


class Model(NamedTuple):
    """A model that is read block by block, so that memory does not grow with its depth."""

    settings: Settings
    ends: Callable[[], Arrays]
    block: Callable[[int], Arrays]

    def load(self) -> dict[str, Array]:
        """Return all parameters, with the blocks stacked."""
        params = stacked(self.ends(), map(self.block, range(self.settings.num_blocks)))
        return {name: jnp.asarray(value) for name, value in params.items()}


class Opened(NamedTuple):
    """The opened ticket of a whole model; its masks are read when they are needed."""

    ticket: Ticket
    network: Network

    @property
    def spec(self) -> Spec:
        """The spec of the random network."""
        return self.network.spec

    def entries(self, part: Part) -> Float[np.ndarray, "count rows columns"]:
        """Generate, mask and multiply the factors of a part; return the resulting matrices.

        Matrices that were copied from the target are read from the ticket instead.
        """
        if part in self.spec.kept_parts:
            raw = self.ticket.bits[source.KEPT + part.name]
            return raw.view(np.float32).reshape(part.count, part.rows, part.columns)
        bits = self.ticket.bits[part.name]
        return products.part_entries(self.network, part, bits, products.mesh())

    def __repr__(self) -> str:
        """Return one line that describes the ticket's size."""
        s, weights = self.spec.settings, sum(part.num_weights for part in self.spec.parts)
        return (
            f"Opened({s.num_blocks} blocks of width {s.width} in {weights:,} random "
            f"weights, seed {self.ticket.seed}, {self.spec.samples} samples per entry)"
        )


def opened(path: str | os.PathLike[str], *, check: bool = True) -> Opened:
    """Return the ticket of a whole model at `path`.

    If `check` is true, the checksum of the masks is verified, and the random weights that this
    machine draws are compared with the ticket's fingerprint.

    Raises:
      ValueError: the source of the ticket is not 'decoder'.
      CheckpointError: the file is missing or damaged, or this machine draws different random
        weights.
    """
    opened_ticket = ticket.open(path, check=check)
    if opened_ticket.source != SOURCE:
        allowed = "the ticket of a whole model"
        raise checks.fail(str(path), allowed, f"source {opened_ticket.source!r}")
    read = ticket.check_decoder if check else source.of_ticket
    return Opened(opened_ticket, read(opened_ticket))


def of_target(reader: Reader) -> Model:
    """Return the trained model that `reader` reads, as a `Model`."""
    checks.instance("reader", reader, Reader, "an open file (models.weights.open)")
    return Model(reader.settings, reader.ends, reader.block)


def of_ticket(ticket: Opened | str | os.PathLike[str]) -> Model:
    """Return the merged model of a ticket; each block is computed when it is read.

    If `ticket` is a path, the file is checked first (see `opened`).
    """
    model = ticket if isinstance(ticket, Opened) else opened(ticket)
    spec = model.spec
    return Model(
        assemble.merged_settings(spec),
        lambda: assemble.merged_ends(spec, model.entries),
        lambda b: assemble.merged_block(spec, b, model.entries),
    )
