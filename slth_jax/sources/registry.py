"""The table of sources: from a name to random weights."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from slth_jax import checks, initializers, models
from slth_jax.storage import CheckpointError
from slth_jax.types import Key, PyTree


@dataclasses.dataclass(frozen=True)
class Source:
    """A distribution of random weights that a ticket can name.

    Attributes:
      name: the name.
      draw: `draw(key, **options) -> tree of weights`; None where they are too many to be held
        together, and `masked` makes them.
      masked: `masked(ticket) -> (name, array) pairs` of weights times masks, one at a time, for
        sources whose tickets store something else than a mask of each weight. It compares the
        weights with the ticket's fingerprint and raises `storage.CheckpointError` where they
        differ.
    """

    name: str
    draw: Callable[..., PyTree] | None = None
    masked: Callable[[Any], Iterable[tuple[str, np.ndarray]]] | None = None


# Sources by name, as a caller may give them: records, or functions `draw(key, **options)`.
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
    """Draw a GPT-2 of `models`; `embeddings` and `gains` only say what a ticket masks."""
    defaults: dict[str, Any] = {"vocab_size": 50257, "max_length": 1024, "activation": "relu"}
    settings = models.make_settings(**(defaults | shape))
    initial = models.Initial(sd=init_sd, embedding_sd=embedding_sd)
    return models.initialise(key, settings, initial, qk_scale=qk_scale)


def _decoder(ticket: Any) -> Iterable[tuple[str, np.ndarray]]:
    from slth_jax.sources import decoder

    if decoder.fingerprint(ticket.options, ticket.seed) != ticket.fingerprint:
        made = ticket.metadata.get("versions", "an unrecorded version")
        raise CheckpointError(
            f"{ticket.recipe} generates other weights here than those of the ticket "
            f"(made with {made})"
        )
    params, _ = decoder.materialize(ticket.options, ticket.seed, ticket.bits)
    yield from params.items()


SOURCES: dict[str, Source] = {
    **{name: Source(name, draw) for name, draw in initializers.SOURCES.items()},
    "gpt2": Source("gpt2", _gpt2),
    "decoder": Source("decoder", masked=_decoder),
}
"""Every source by its name."""


def get(name: str, sources: Sources | None = None) -> Source:
    """Return the source of a name, from `sources` or, where that is None, from `SOURCES`.

    Raises:
      ValueError: there is none of that name.
    """
    known = SOURCES if sources is None else sources
    found = known[checks.choice("source", name, sorted(known))]
    return found if isinstance(found, Source) else Source(name, found)
