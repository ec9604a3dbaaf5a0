"""A ticket as a thing: the recipe of its source, one bit a connection, and checksums.

A ticket is source weights times masks. The source is never trained, so a ticket's file holds no
weight: it holds the source's name and numbers, the seed, and the packed masks.

`create` (or `from_row`, of a sweep's row) makes a `Ticket` (`record`); `save` writes one, `load`
reads it whole, `open` leaves its masks in the file until they are asked for (`file`). `materialize`
generates the weights anew, compares them with the fingerprint of those that the masks were found
for, and returns them masked; `weights` yields them one at a time and `export` writes them as NumPy
arrays. `verify` checks a file, and against a target its recorded error too; `describe` draws it.
"""

from slth_jax.ticket.claims import Report, verify
from slth_jax.ticket.file import SUFFIX, header, load, masks_sum, open, read_header, save
from slth_jax.ticket.record import (
    IMPL,
    Ticket,
    create,
    from_row,
    mask,
    masks,
    materialize,
    weights,
)
from slth_jax.ticket.show import describe, export

__all__ = [
    "IMPL",
    "SUFFIX",
    "Report",
    "Ticket",
    "create",
    "describe",
    "export",
    "from_row",
    "header",
    "load",
    "mask",
    "masks",
    "masks_sum",
    "materialize",
    "open",
    "read_header",
    "save",
    "verify",
    "weights",
]
