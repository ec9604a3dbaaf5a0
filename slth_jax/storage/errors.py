"""Errors of files, folders and buckets; each message is one line that names the path."""

import contextlib
import os
import re
from collections.abc import Iterator

from slth_jax import checks


class CheckpointError(Exception):
    """A file or folder that cannot be used; the message is one line, without control characters."""

    def __init__(self, message: str):
        """Escape control characters, since names of files may come from strangers."""
        super().__init__(checks.one_line(message))


class Damaged(CheckpointError):
    """Bytes that differ from the bytes that were written."""


class Locked(CheckpointError):
    """A folder that another live process is writing to."""


def reason(error: BaseException) -> str:
    """Return the reason of an error in one short line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    code = re.search(r"os_error_code='(\d+)'", str(error))  # TensorStore's form
    if code:
        return os.strerror(int(code[1]))
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]


@contextlib.contextmanager
def one_line(action: str, path: object) -> Iterator[None]:
    """Turn an operating-system error into the line 'cannot ACTION PATH: reason'."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"cannot {action} {path}: {reason(error)}") from error
