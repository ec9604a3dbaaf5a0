"""Files that survive: written aside, flushed, renamed.

Every file is written aside, flushed to the disk and renamed, so a reader finds the old file or
the new one and never a half. Every error is a `CheckpointError` of one line that names the file.
"""

import contextlib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from slth_jax.storage.hashes import json_hash


class CheckpointError(Exception):
    """A file or folder that cannot be used; the message is one line."""


class Damaged(CheckpointError):
    """Bytes that are not those that were written."""


class Locked(CheckpointError):
    """A folder that another live process is writing to."""


def reason(error: BaseException) -> str:
    """Return what went wrong in one short line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    code = re.search(r"os_error_code='(\d+)'", str(error))  # TensorStore's way of saying it
    if code:
        return os.strerror(int(code[1]))
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]


@contextlib.contextmanager
def telling(what: str, path: Path) -> Iterator[None]:
    """Turn an operating-system error into one line about `path`."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"cannot {what} {path}: {reason(error)}") from error


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Return `path` as an absolute folder, made with its parents where it was missing."""
    folder = Path(path).absolute()
    with telling("make the folder", folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable: a rename is safe only once its folder is flushed."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def check_room(folder: Path, size: int) -> None:
    """Find out whether `size` bytes more fit on the disk, by taking and giving back the room.

    For what other libraries write: they are less clear about a full disk.

    Raises:
      CheckpointError: they do not fit.
    """
    path = folder / ".room.tmp"
    with telling("write", folder):
        try:
            with open(path, "wb") as file:
                os.posix_fallocate(file.fileno(), 0, size)
        finally:
            path.unlink(missing_ok=True)


def move(source: Path, target: Path) -> None:
    """Rename a folder durably; `target` must not be there.

    Raises:
      CheckpointError: the rename fails; both places are as they were.
    """
    with telling("write", target):
        os.rename(source, target)
        sync_folder(target.parent)


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Yield a file that becomes `path`, durably and all at once, when the block ends well.

    Raises:
      CheckpointError: the disk is full, the folder cannot be written to, and so on. What was at
        `path` before is still there.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with telling("write", path):
        try:
            with open(aside, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
            sync_folder(path.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)
            raise


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to `path` atomically and durably (see `writing`)."""
    with writing(path) as file:
        file.write(data)


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Return the bytes at `path`.

    Raises:
      CheckpointError: the file is missing or cannot be read.
    """
    with telling("read", Path(path)):
        return Path(path).read_bytes()


def plain(value: Any) -> Any:
    """Return `value` in JSON's own types.

    NumPy scalars and arrays become numbers and lists, tuples become lists, and NaN and the
    infinities, which JSON does not have, become 'NaN', 'Infinity' and '-Infinity': `float` and
    `pandas.to_numeric` read them back.
    """
    if isinstance(value, Mapping):
        return {str(name): plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return value


def write_json(path: str | os.PathLike[str], value: Any, *, checksum: bool = False) -> None:
    """Write `value` (see `plain`) as indented JSON, atomically.

    With `checksum`, `value` must be a mapping, and the SHA-256 of its canonical form is written
    beside it under the name 'sha256', for `read_json` to verify.
    """
    value = plain(value)
    if checksum:
        value = {**value, "sha256": json_hash(value)}
    write_bytes(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def read_json(path: str | os.PathLike[str], *, checksum: bool | None = False) -> Any:
    """Return the JSON at `path`; with `checksum`, as `write_json(..., checksum=True)` wrote it.

    With `checksum` None a checksum is compared if the file has one.

    Raises:
      Damaged: it is not JSON, or not the JSON that was written.
    """
    try:
        value = json.loads(read_bytes(path).decode())
    except ValueError as error:
        raise Damaged(f"{path} is damaged: not JSON ({reason(error)})") from error
    recorded = None
    if checksum is not False and isinstance(value, dict):
        recorded = value.pop("sha256", None)
    if (checksum or recorded is not None) and recorded != json_hash(value):
        raise Damaged(f"{path} is damaged: its checksum does not match")
    return value


def write_rows(path: str | os.PathLike[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write `rows` as JSON lines (see `plain`), one mapping a line, atomically."""
    with writing(path) as file:
        for row in rows:
            file.write((json.dumps(plain(row), allow_nan=False) + "\n").encode())
