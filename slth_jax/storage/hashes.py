"""Checksums of named arrays and of JSON values."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from slth_jax.types import ArrayLike


def array_hash(named: Mapping[str, ArrayLike]) -> str:
    """Return one SHA-256 of the names, dtypes, shapes and bytes of all arrays, sorted by name."""
    arrays = ((name, np.asarray(array)) for name, array in sorted(named.items()))
    return stream_hash((name, x.dtype, x.shape, (x,)) for name, x in arrays)


def stream_hash(
    arrays: Iterable[tuple[str, np.dtype | str, tuple[int, ...], Iterable[np.ndarray]]],
) -> str:
    """Return the `array_hash` of arrays given as (name, dtype, shape, blocks), sorted by name."""
    digest = hashlib.sha256()
    for name, dtype, shape, blocks in arrays:
        digest.update(f"{name} {dtype} {shape}\n".encode())
        for block in blocks:
            digest.update(np.ascontiguousarray(block).tobytes())
    return digest.hexdigest()


def json_hash(value: Any) -> str:
    """Return the SHA-256 of a JSON value; the order of keys in mappings has no effect."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
