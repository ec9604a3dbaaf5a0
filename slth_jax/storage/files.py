"""Files that survive: atomic writes, folder locks and checksums.

Every file is written aside, flushed to the disk and renamed, so a reader finds the old file or
the new one and never a half. Every error is a `CheckpointError` of one line that names the file.
"""

import contextlib
import fcntl
import hashlib
import json
import math
import os
import re
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

SUMS = "SHA256SUMS"
_SUMS_LINE = re.compile(r"([0-9a-f]{64})  (.+)")


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
def _telling(what: str, path: Path) -> Iterator[None]:
    """Turn an operating-system error into one line about `path`."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"cannot {what} {path}: {reason(error)}") from error


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Return `path` as an absolute folder, made with its parents where it was missing."""
    folder = Path(path).absolute()
    with _telling("make the folder", folder):
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
    with _telling("write", folder):
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
    with _telling("write", target):
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
    with _telling("write", path):
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
    with _telling("read", Path(path)):
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


def _json_sum(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def write_json(path: str | os.PathLike[str], value: Any, *, checksum: bool = False) -> None:
    """Write `value` (see `plain`) as indented JSON, atomically.

    With `checksum`, `value` must be a mapping, and the SHA-256 of its canonical form is written
    beside it under the name 'sha256', for `read_json` to verify.
    """
    value = plain(value)
    if checksum:
        value = {**value, "sha256": _json_sum(value)}
    write_bytes(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def read_json(path: str | os.PathLike[str], *, checksum: bool = False) -> Any:
    """Return the JSON at `path`; with `checksum`, as `write_json(..., checksum=True)` wrote it.

    Raises:
      Damaged: it is not JSON, or not the JSON that was written.
    """
    try:
        value = json.loads(read_bytes(path).decode())
    except ValueError as error:
        raise Damaged(f"{path} is damaged: not JSON ({reason(error)})") from error
    if checksum:
        recorded = value.pop("sha256", None) if isinstance(value, dict) else None
        if recorded is None or recorded != _json_sum(value):
            raise Damaged(f"{path} is damaged: its checksum does not match")
    return value


def write_rows(path: str | os.PathLike[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write `rows` as JSON lines (see `plain`), one mapping a line, atomically."""
    with writing(path) as file:
        for row in rows:
            file.write((json.dumps(plain(row), allow_nan=False) + "\n").encode())


@contextlib.contextmanager
def lock(
    folder: str | os.PathLike[str], *, name: str = "lock", shared: bool = False
) -> Iterator[None]:
    """Hold `folder` while the block runs, so that no other process writes to it.

    The lock is the operating system's (`flock` on `folder/name`), so it ends with the process
    that holds it, even when that is killed; the file itself stays. Several processes may hold a
    `shared` lock at once, but not beside an unshared one.

    Raises:
      Locked: another live process holds it; the line says which.
      CheckpointError: the folder cannot be written to.
    """
    path = make_folder(folder) / name
    with _telling("lock", path):
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(fd, 200, 0).decode(errors="replace").strip() or "another process"
            raise Locked(f"{folder} is in use by {holder}; wait for it or stop it") from error
        except OSError as error:
            raise CheckpointError(f"cannot lock {path}: {reason(error)}") from error
        with contextlib.suppress(OSError):  # only for the message above: a full disk may refuse it
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)


def _files(folder: Path, names: Sequence[str] | None) -> dict[str, Path]:
    """Return the files that a seal covers: the named ones, or all."""
    if names is not None:
        return {name: folder / name for name in names if (folder / name).is_file()}
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path for path in found if path.name != SUMS}


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(folder: str | os.PathLike[str], names: Sequence[str] | None = None) -> None:
    """Flush the files under `folder` and write their SHA-256 sums into `folder/SHA256SUMS`.

    All files, or those of the given names. `SHA256SUMS` has the format of the command
    `sha256sum`, which can check it too.

    Raises:
      CheckpointError: a file cannot be flushed or written.
    """
    folder = Path(folder)
    lines = []
    with _telling("write", folder):
        for name, path in _files(folder, names).items():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
            lines.append(f"{_digest(path)}  {name}\n")
        for inner in (path for path in folder.rglob("*") if path.is_dir()):
            sync_folder(inner)
    write_bytes(folder / SUMS, "".join(lines).encode())


def check(folder: str | os.PathLike[str], names: Sequence[str] | None = None) -> None:
    """Compare the files that `seal(folder, names)` covered with `folder/SHA256SUMS`.

    Raises:
      Damaged: a file is missing, is one too many, or has other bytes; the line names it.
    """
    folder = Path(folder)
    try:
        text = read_bytes(folder / SUMS).decode()
    except (CheckpointError, UnicodeDecodeError) as error:
        raise Damaged(f"{folder / SUMS} is damaged: {reason(error)}") from error
    lines = text.split("\n")
    matches = [_SUMS_LINE.fullmatch(line) for line in lines[:-1]]
    if lines[-1] or not matches or not all(matches):
        raise Damaged(f"{folder / SUMS} is damaged: not a list of checksums")
    sums = {match[2]: match[1] for match in matches if match}
    files = _files(folder, names)
    for name in sorted(sums.keys() ^ files.keys()):
        state = "is missing" if name in sums else "is not in its SHA256SUMS"
        raise Damaged(f"{folder / name} {state}: the folder {folder} is damaged")
    for name, path in files.items():
        with _telling("read", path):
            same = _digest(path) == sums[name]
        if not same:
            raise Damaged(f"{path} is damaged: its checksum does not match")
