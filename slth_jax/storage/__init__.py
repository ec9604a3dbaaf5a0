"""Everything that is written so that it survives: one face.

`files` writes aside, flushes and renames; `sums` seals a folder with checksums and `locks` holds
it; `arrays` saves and loads trees of arrays through Orbax, in folders that are then sealed; `names`
calls the leaves of a tree by their places, and `differences` finds where two configurations part.
Every error is a `CheckpointError` of one line.
"""

from slth_jax.storage.arrays import load_tree, save_tree
from slth_jax.storage.differences import MISSING, difference
from slth_jax.storage.files import (
    CheckpointError,
    Damaged,
    Locked,
    check_room,
    make_folder,
    move,
    plain,
    read_bytes,
    read_json,
    reason,
    write_bytes,
    write_json,
    write_rows,
    writing,
)
from slth_jax.storage.locks import lock, lock_shard
from slth_jax.storage.names import named_leaves, nested
from slth_jax.storage.sums import SUMS, check, seal

__all__ = [
    "MISSING",
    "SUMS",
    "CheckpointError",
    "Damaged",
    "Locked",
    "check",
    "check_room",
    "difference",
    "load_tree",
    "lock",
    "lock_shard",
    "make_folder",
    "move",
    "named_leaves",
    "nested",
    "plain",
    "read_bytes",
    "read_json",
    "reason",
    "save_tree",
    "seal",
    "write_bytes",
    "write_json",
    "write_rows",
    "writing",
]
