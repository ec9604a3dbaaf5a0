"""Write files atomically: write a temporary file, flush and rename it; or write a bucket object.

A reader finds either the complete old file or the complete new file. Every error is a
`CheckpointError` whose message is one line that names the file.
"""

import contextlib
import io
import json
import math
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, overload

import jax
import numpy as np

from slth_jax import checks
from slth_jax.storage.errors import CheckpointError, Damaged, one_line, reason
from slth_jax.storage.hashes import json_hash
from slth_jax.storage.places import BucketPath, Place, place

# With these flags, opening a pipe does not wait for a writer, and child processes do not inherit
# open files.
NO_WAIT = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)


@overload
def make_folder(path: Path) -> Path: ...
@overload
def make_folder(path: str | os.PathLike[str]) -> Place: ...
def make_folder(path: str | os.PathLike[str]) -> Place:
    """Create the folder `path` and its parents if they are missing; return its absolute path.

    In a bucket nothing is created, because a folder exists as soon as it contains an object.
    """
    folder = place(path).absolute()
    if isinstance(folder, BucketPath):
        return folder
    with one_line("make the folder", folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def sync_folder(folder: Path) -> None:
    """Flush a folder to the disk, so that renames in the folder survive a crash."""
    if not hasattr(os, "O_DIRECTORY"):  # a system that cannot open folders
        return
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def check_room(folder: Place, size: int) -> None:
    """Check that `size` more bytes fit on the disk, by creating and removing a file of this size.

    This check is for files that other libraries write, because the errors of these libraries about
    a full disk are unclear. For a bucket nothing is checked, since writing an object fails if the
    quota is used up.

    Raises:
      CheckpointError: the bytes do not fit.
    """
    if isinstance(folder, BucketPath) or not hasattr(os, "posix_fallocate"):
        return
    path = folder / ".space.tmp"
    with one_line("write", folder):
        try:
            path.unlink(missing_ok=True)
            with open(path, "xb") as file:
                os.posix_fallocate(file.fileno(), 0, size)
        finally:
            path.unlink(missing_ok=True)


def move(source: Path, target: Path) -> None:
    """Rename a file or folder so that the rename survives a crash; `target` must not exist.

    Raises:
      CheckpointError: the rename fails; both paths are unchanged.
    """
    with one_line("write", target):
        os.rename(source, target)
        sync_folder(target.parent)


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Yield an open file that replaces `path` if the `with` block raises no error.

    The replacement is atomic and survives a crash. If `path` is in a bucket, the written bytes are
    collected in memory, and the object is written at the end of the block.

    Raises:
      CheckpointError: the file cannot be written, for example because the disk is full. A file that
        already existed at `path` is unchanged.
    """
    path = place(path)
    if isinstance(path, BucketPath):
        with io.BytesIO() as buffer:
            yield buffer
            path.write_bytes(buffer.getvalue())
        return
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with one_line("write", path):
        aside.unlink(missing_ok=True)
        try:
            # The file must be new, since an existing link of this name would lead to another file.
            with open(aside, "xb") as file:
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


def write_new(path: str | os.PathLike[str], data: bytes) -> bool:
    """Write `data` to `path` unless a file exists there; return whether `data` was written."""
    path = place(path)
    if isinstance(path, BucketPath):
        return path.store.swap(path.key, None, data) is not None
    if path.exists():
        return False
    write_bytes(path, data)
    return True


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Return the bytes at `path`.

    Raises:
      CheckpointError: the file is missing, cannot be read, or is not a regular file (reading a
        pipe, for example, might never end).
    """
    path = place(path)
    if isinstance(path, BucketPath):
        return path.read_bytes()
    with one_line("read", path):
        fd = os.open(path, os.O_RDONLY | NO_WAIT)
        with open(fd, "rb") as file:
            check_regular(fd, path)
            return file.read()


def check_regular(fd: int, path: Path) -> None:
    """Raise an error if an open file is a device, a pipe or a folder.

    Raises:
      CheckpointError: the file is not a regular file.
    """
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise CheckpointError(f"{path} is no regular file")


def plain(value: Any, at: str = "") -> Any:
    """Convert `value` to types that JSON can store.

    NumPy scalars and arrays become numbers and lists; tuples become lists. JSON lacks NaN and
    infinities, so these become the texts 'NaN', 'Infinity' and '-Infinity', which `float` and
    `pandas.to_numeric` can read.

    Raises:
      ValueError: a value has a type that JSON lacks. The error message names the value's path,
        which begins with `at`, such as 'config.rates[2]'.
    """
    if isinstance(value, Mapping):
        return {
            str(name): plain(entry, f"{at}.{name}" if at else str(name))
            for name, entry in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [plain(entry, f"{at}[{index}]") for index, entry in enumerate(value)]
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return plain(np.asarray(value).tolist(), at)
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    allowed = "in JSON's types (numbers, texts, None, lists and mappings of these)"
    raise checks.fail(at or "value", allowed, type(value).__name__)


def write_json(path: str | os.PathLike[str], value: Any, *, checksum: bool = False) -> None:
    """Convert `value` with `plain` and write it atomically as indented JSON (see `json_bytes`)."""
    write_bytes(path, json_bytes(value, checksum=checksum))


def json_bytes(value: Any, *, checksum: bool = False) -> bytes:
    """Convert `value` with `plain` and return the bytes of its indented JSON.

    If `checksum` is true, `value` must be a mapping. The SHA-256 of its canonical JSON is then
    added as the entry 'sha256', which `read_json` verifies.
    """
    value = plain(value)
    if checksum:
        value = {**value, "sha256": json_hash(value)}
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


def read_json(path: str | os.PathLike[str], *, checksum: bool | None = False) -> Any:
    """Return the JSON at `path`.

    If `checksum` is true, the file must contain the checksum that `write_json(..., checksum=True)`
    adds. If `checksum` is None, a checksum is verified if the file contains one, but not required.

    Raises:
      Damaged: the file is not JSON, or differs from the JSON that was written.
    """
    try:
        value = json.loads(read_bytes(path).decode())
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path} is damaged: not JSON ({reason(error)})") from error
    recorded = None
    if checksum is not False and isinstance(value, dict):
        recorded = value.pop("sha256", None)
    if (checksum or recorded is not None) and recorded != json_hash(value):
        raise Damaged(f"{path} is damaged: its checksum does not match")
    return value


def write_rows(path: str | os.PathLike[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Convert mappings with `plain` and write them atomically as JSON, one mapping per line."""
    with writing(path) as file:
        for row in rows:
            file.write((json.dumps(plain(row), allow_nan=False) + "\n").encode())
