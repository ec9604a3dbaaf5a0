"""The table of sources, which maps names in tickets to functions that draw random weights."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from slth_jax import checks, initializers
from slth_jax.storage import CheckpointError
from slth_jax.types import Key, PyTree

if TYPE_CHECKING:
    from slth_jax.factored import Network


@dataclasses.dataclass(frozen=True)
class Source:
    """A distribution of random weights that a ticket can name.

    Attributes:
      name: the name that tickets store.
      draw: `draw(key, **options)` returns the tree of weights. `draw` is None if the weights do not
        fit into memory; in that case `masked` yields the masked weights instead.
      masked: `masked(ticket)` yields pairs (name, weights times mask) one at a time. `masked` is
        needed for sources whose tickets do not store a mask for each weight. `masked` compares the
        weights with the ticket's fingerprint before the first pair and raises
        `storage.CheckpointError` if they differ.
      check: `check(ticket)` compares the source's weights with the ticket's fingerprint but returns
        no weights; None if only `masked` can compare them.
    """

    name: str
    draw: Callable[..., PyTree] | None = None
    masked: Callable[[Any], Iterable[tuple[str, np.ndarray]]] | None = None
    check: Callable[[Any], object] | None = None


# The argument `sources`: a dict from name to a `Source` or to a function `draw(key, **options)`.
Sources = Mapping[str, Source | Callable[..., PyTree]]


def _gpt2(
    key: Key,
    *,
    qk_scale: float = 1.0,
    init_sd: float = 0.02,
    embedding_sd: float | None = None,
    embeddings: str = "masked",
    gains: str = "fixed",
    **shape: Any,
) -> PyTree:
    """Draw the weights of a GPT-2.

    The options `embeddings` and `gains` only state which parts are masked; they change no weight.
    """
    from slth_jax import models

    defaults: dict[str, Any] = {"vocab_size": 50257, "max_length": 1024, "activation": "relu"}
    settings = models.make_settings(**(defaults | shape))
    initial = models.Initial(sd=init_sd, embedding_sd=embedding_sd)
    return models.initialise(key, settings, initial, qk_scale=qk_scale)


def _decoder(ticket: Any) -> Iterable[tuple[str, np.ndarray]]:
    from slth_jax.factored import source

    params, _ = source.materialize(check_decoder(ticket), ticket.bits)
    yield from params.items()


def check_decoder(ticket: Any) -> "Network":
    """Check that this machine draws the weights of a model's ticket; return the ticket's network.

    Raises:
      CheckpointError: this machine draws different random weights, or the masks do not fit the
        network.
    """
    from slth_jax.factored import source

    network = source.of_ticket(ticket)
    if source.fingerprint(network) != ticket.fingerprint:
        raise other_weights(ticket)
    return network


def other_weights(ticket: Any) -> CheckpointError:
    """Return the error for a ticket whose weights this machine draws differently."""
    import jax

    version = ticket.metadata.get("versions", "an unrecorded version")
    return CheckpointError(
        f"{ticket.origin} generates other weights here (jax {jax.__version__}) than those of the "
        f"ticket (from {version})"
    )


SOURCES: dict[str, Source] = {
    **{name: Source(name, draw) for name, draw in initializers.SOURCES.items()},
    "gpt2": Source("gpt2", _gpt2),
    "decoder": Source("decoder", masked=_decoder, check=check_decoder),
}
"""All sources by name."""


def get(name: str, sources: Sources | None = None) -> Source:
    """Return the source with this name from `sources`, or from `SOURCES` if `sources` is None.

    Raises:
      ValueError: no source has this name.
    """
    known = SOURCES if sources is None else sources
    source = known[checks.choice("source", name, sorted(known))]
    return source if isinstance(source, Source) else Source(name, source)
