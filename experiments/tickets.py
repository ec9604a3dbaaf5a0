"""Ticket files in a run's folder."""

from collections.abc import Mapping
from typing import Any

from experiments.folder import RunFolder
from slth_jax import ticket
from slth_jax.types import PyTree


def save(
    out: RunFolder,
    name: str,
    source: str,
    options: Mapping[str, Any],
    seed: int,
    masks: PyTree,
    *,
    weights: PyTree | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write ``tickets/NAME.ticket.safetensors``; see `ticket.create` for the arguments."""
    if out.writes:
        created = ticket.create(source, options, seed, masks, weights=weights, metadata=metadata)
        ticket.save(out.tickets / f"{name}{ticket.SUFFIX}", created, overwrite=True)
