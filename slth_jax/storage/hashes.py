"""The checksum of named arrays, and that of a JSON value."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from slth_jax.types import ArrayLike


def array_hash(named: Mapping[str, ArrayLike]) -> str:
    """Return the SHA-256 of the names, dtypes, shapes and bytes of arrays, sorted by name."""
    digest = hashlib.sha256()
    for name, array in sorted(named.items()):
        value = np.asarray(array)
        digest.update(f"{name} {value.dtype} {value.shape}\n".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def json_hash(value: Any) -> str:
    """Return the SHA-256 of a value in JSON's types, whatever the order of its names."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
