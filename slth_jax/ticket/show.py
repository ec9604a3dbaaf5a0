"""Describe a ticket as text; export its weights."""

import json
import math
import os
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from slth_jax import checks, storage
from slth_jax.ticket.file import LEVELS, Stored
from slth_jax.ticket.record import Ticket, weights
from slth_jax.ticket.sources import Sources

_BAR = 24


def describe(ticket: Ticket) -> str:
    """Describe the content of a ticket in lines of text; masks are read one at a time."""
    lines = [f"source       {ticket.source}, seed {ticket.seed}"]
    lines += _named(ticket.options)
    lines += [f"fingerprint  {ticket.fingerprint}", "masks, and the share of ones in each"]
    width = max((len(name) for name in ticket.shapes), default=0)
    for name, shape in ticket.shapes.items():
        share = ticket.num_kept(name) / max(math.prod(shape), 1)
        bar = "█" * round(_BAR * share) + "·" * (_BAR - round(_BAR * share))
        lines.append(
            f"  {name:<{width}}  {bar} {100 * share:5.1f} %  {' x '.join(map(str, shape))}"
        )
    lines.append(f"connections  {ticket.size:,}, {_stored(ticket)}")
    lines.append(f"size         {_size(ticket)}")
    scales = [name for name in LEVELS if name in ticket.bits]
    for name in scales:
        title = f"{name[:-1]} scales"
        lines.append(f"{title:<12} {ticket.bits[name].size:,} bytes, 4 bits each")
    unmasked = [name for name in ticket.bits if name not in (*ticket.shapes, *scales)]
    if unmasked:
        lines.append(f"kept arrays  {', '.join(unmasked)}")
    if ticket.metadata:
        lines.append("metadata")
        lines += _named(ticket.metadata)
    return "\n".join(lines)


def _stored(ticket: Ticket) -> str:
    """Describe in words how many bits the file stores per connection."""
    bits = sorted(set(ticket.choices.values()))
    if not bits:
        return "one bit each"
    groups = " or ".join(f"{b} bits per {2**b}" for b in bits)
    rest = "" if len(ticket.choices) == len(ticket.shapes) else "one bit each, or "
    return f"{rest}{groups} of which one is kept"


def _size(ticket: Ticket) -> str:
    """Describe the sizes of masks and target in bytes, and the bits per trained weight if known."""
    size = sum(bits.size for bits in ticket.bits.values())
    text, target = f"{size:,} bytes", ticket.metadata.get("target_bytes")
    if isinstance(ticket.bits, Stored) and ticket.bits.num_bytes != size:
        text = f"{ticket.bits.num_bytes:,} bytes, {size:,} before compression"
        size = ticket.bits.num_bytes
    if not isinstance(target, int) or target <= 0:
        return text
    rate = 8 * size / (target / 4)
    return f"{text}; target {target:,} bytes in float32, {rate:.2f} bits per trained weight"


def _named(fields: Mapping[str, Any]) -> list[str]:
    width = max(map(len, fields), default=0)
    return [f"  {name:<{width}}  {_short(value)}" for name, value in fields.items()]


def _short(value: Any) -> str:
    # JSON escapes control characters in the file, which must not reach a terminal.
    text = value if isinstance(value, str) and value.isprintable() else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:76]} ..."


def export(ticket: Ticket, out: str | os.PathLike[str], *, sources: Sources | None = None) -> int:
    """Write a ticket's weights (source times masks) to a .npz file; return the number of arrays.

    The arrays are written one after another, under the names of the masks. The file `out` appears
    only when it is complete. Equal tickets give equal bytes.

    Raises:
      ValueError: `out` does not end in '.npz'.
      CheckpointError: the weights cannot be generated (see `materialize`), or the file cannot be
        written.
    """
    out, count = storage.place(out), 0
    if out.suffix != ".npz":
        raise checks.fail("out", "NAME.npz", repr(str(out)))
    with storage.writing(out) as file, zipfile.ZipFile(file, "w", allowZip64=True) as archive:
        for name, value in weights(ticket, sources=sources):
            entry = zipfile.ZipInfo(f"{name or 'weights'}.npy")  # a fixed date, for equal bytes
            with archive.open(entry, "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(value), allow_pickle=False)
            count += 1
    return count
