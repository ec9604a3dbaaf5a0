"""Save and load tickets: the name of a random source, packed masks, and checksums.

A ticket is a subnetwork of a random network: the random source weights times masks. The source is
never trained, so a ticket's file contains no weights. The file contains the source's name and
options, the seed, and the packed masks, one bit per connection.

`create` returns a `Ticket` with given masks, and `from_row` returns the ticket that one trial of a
sweep found. `save` writes a ticket's file, `load` reads the whole file, and `open` reads each mask
only when it is accessed. `materialize` generates the source weights again, compares them with the
fingerprint of the weights for which the masks were found, and returns the masked weights. `weights`
yields the arrays of masked weights one at a time, and `export` writes these arrays to a .npz file.
`verify` checks a file and, if a target is given, the error stored in the file. `describe` shows a
ticket as text. `sources` contains the table of sources that tickets may name.
"""

from slth_jax.ticket.claims import Report, verify
from slth_jax.ticket.file import SUFFIX, Tensor, load, open, read_header, save, stored, write
from slth_jax.ticket.record import (
    IMPL,
    Ticket,
    check_source,
    create,
    from_row,
    mask,
    masks,
    materialize,
    weights,
)
from slth_jax.ticket.show import describe, export
from slth_jax.ticket.sources import SOURCES, Source, Sources, check_decoder

__all__ = [
    "IMPL",
    "SOURCES",
    "SUFFIX",
    "Report",
    "Source",
    "Sources",
    "Tensor",
    "Ticket",
    "check_decoder",
    "check_source",
    "create",
    "describe",
    "export",
    "from_row",
    "load",
    "mask",
    "masks",
    "materialize",
    "open",
    "read_header",
    "save",
    "stored",
    "verify",
    "weights",
    "write",
]
