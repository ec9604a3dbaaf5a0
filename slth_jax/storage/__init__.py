"""Crash-safe files and folders on a disk or in a bucket: atomic writes, locks, checksums, trees.

`RunFolder` manages the output folder of a run: its configuration, its lock and its pieces (saved
results). `places` represents paths on this machine or in a bucket, and `files` writes files
atomically. `sums` writes and checks the checksums of a folder's files. `locks` keeps other
processes out of a folder; in a bucket, `claims` replaces these locks. `arrays` saves trees of
arrays by Orbax. `pieces` and `objects` define the formats of pieces on a disk and in a bucket, and
`media` the other differences between disk and bucket. `bucket` sends the requests to a bucket.
`names` names the leaves of a tree, `differences` compares two configurations, and `hashes` computes
checksums of arrays and of JSON. Every error is a `CheckpointError` whose message is one line.
"""

from slth_jax.storage.arrays import load_tree, save_tree
from slth_jax.storage.differences import MISSING, difference, explain
from slth_jax.storage.errors import CheckpointError, Damaged, Locked, reason
from slth_jax.storage.files import (
    check_room,
    make_folder,
    move,
    plain,
    read_bytes,
    read_json,
    write_bytes,
    write_json,
    write_new,
    write_rows,
    writing,
)
from slth_jax.storage.hashes import array_hash, json_hash, stream_hash
from slth_jax.storage.locks import lock, lock_shard
from slth_jax.storage.names import named_leaves, nested
from slth_jax.storage.numpy_files import read_numpy
from slth_jax.storage.pieces import Files, Folders
from slth_jax.storage.places import BucketPath, Local, Place, fetched, place, remove
from slth_jax.storage.run_folder import CONFIG, RunFolder
from slth_jax.storage.sums import SUMS, check, seal

__all__ = [
    "CONFIG",
    "MISSING",
    "SUMS",
    "BucketPath",
    "CheckpointError",
    "Damaged",
    "Files",
    "Folders",
    "Local",
    "Locked",
    "Place",
    "RunFolder",
    "array_hash",
    "check",
    "check_room",
    "difference",
    "explain",
    "fetched",
    "json_hash",
    "load_tree",
    "lock",
    "lock_shard",
    "make_folder",
    "move",
    "named_leaves",
    "nested",
    "place",
    "plain",
    "read_bytes",
    "read_json",
    "read_numpy",
    "reason",
    "remove",
    "save_tree",
    "seal",
    "stream_hash",
    "write_bytes",
    "write_json",
    "write_new",
    "write_rows",
    "writing",
]
