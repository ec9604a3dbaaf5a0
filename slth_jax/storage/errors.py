"""Errors of files, folders and buckets; each message is one line that names the path."""

import contextlib
import os
import re
from collections.abc import Iterator

from slth_jax import checks


class CheckpointError(Exception):
    """A file or folder cannot be used; the message is one line without control characters."""

    def __init__(self, message: str):
        """Escape control characters in the message, since it may contain untrusted file names."""
        super().__init__(checks.one_line(message))


class Damaged(CheckpointError):
    """The bytes of a file differ from the bytes that were written."""


class Locked(CheckpointError):
    """Another live process is writing to the folder."""


def reason(error: BaseException) -> str:
    """Return one short line with the reason for an error."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    code = re.search(r"os_error_code='(\d+)'", str(error))  # the format of TensorStore's messages
    if code:
        return os.strerror(int(code[1]))
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]


@contextlib.contextmanager
def one_line(action: str, path: object) -> Iterator[None]:
    """Convert an `OSError` to a `CheckpointError` with the message 'cannot ACTION PATH: reason'."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"cannot {action} {path}: {reason(error)}") from error
