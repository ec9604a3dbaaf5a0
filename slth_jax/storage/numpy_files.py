"""Read arrays from NumPy's files, `.npy` and `.npz`, without pickles."""

import os
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from slth_jax.storage.errors import Damaged, one_line, reason
from slth_jax.storage.places import place

_ERRORS = (ValueError, EOFError, KeyError, TypeError, MemoryError, OverflowError, SyntaxError)


def read_numpy(path: str | os.PathLike[str]) -> np.ndarray | dict[str, np.ndarray]:
    """Return the array in a `.npy` file, or a dict of the arrays in a `.npz` file.

    An array whose header states more bytes than the file has is refused before memory is allocated.

    Raises:
      Damaged: the file is damaged, or is not a NumPy file.
      CheckpointError: the file is missing or cannot be read.
    """
    path = place(path)
    with one_line("read", path):
        try:
            with path.open("rb") as file:
                if zipfile.is_zipfile(file):
                    return dict(_members(file))
                size = file.seek(0, os.SEEK_END)
                file.seek(0)
                return _array(file, size)
        except (*_ERRORS, zipfile.BadZipFile, NotImplementedError) as error:
            raise Damaged(f"{path} is damaged or no NumPy file: {reason(error)}") from error


def _members(file: Any) -> Iterator[tuple[str, np.ndarray]]:
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            with archive.open(member) as opened:
                yield member.filename.removesuffix(".npy"), _array(opened, member.file_size)


def _array(file: Any, size: int) -> np.ndarray:
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    shape, _, dtype = read[version](file)
    needed = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if dtype.hasobject or needed > size:
        raise ValueError(f"{needed} bytes of {dtype} stated in {size} bytes")
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=False)
