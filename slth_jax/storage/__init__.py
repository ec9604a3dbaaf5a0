"""Everything that is written so that it survives: one face for files and arrays.

`files` writes aside, flushes and renames, locks folders and checks sums; `arrays` saves and loads
trees of arrays through Orbax, in folders that `files` seals; `names` calls their leaves by name.
"""

from slth_jax.storage.arrays import load_tree, save_tree
from slth_jax.storage.files import (
    SUMS,
    CheckpointError,
    Damaged,
    Locked,
    check,
    check_room,
    lock,
    make_folder,
    move,
    plain,
    read_bytes,
    read_json,
    reason,
    seal,
    write_bytes,
    write_json,
    write_rows,
    writing,
)
from slth_jax.storage.names import named_leaves, nested

__all__ = [
    "SUMS",
    "CheckpointError",
    "Damaged",
    "Locked",
    "check",
    "check_room",
    "load_tree",
    "lock",
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
