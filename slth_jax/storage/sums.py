"""Checksums of a folder's files, in the format of the command `sha256sum`."""

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slth_jax.storage.errors import CheckpointError, Damaged, one_line, reason
from slth_jax.storage.files import read_bytes, sync_folder, write_bytes
from slth_jax.storage.places import Place, place

SUMS = "SHA256SUMS"
_SUMS_LINE = re.compile(r"([0-9a-f]{64})  (.+)")


def _files(folder: Place, names: Sequence[str] | None) -> dict[str, Any]:
    """Return a dict of the files to checksum: those in `names`, or all if `names` is None."""
    if names is not None:
        return {name: folder / name for name in names if (folder / name).is_file()}
    inside: list[Any] = sorted(folder.glob("**/*"))  # type: ignore[type-var]
    files = (path for path in inside if path.is_file())
    return {path.relative_to(folder).as_posix(): path for path in files if path.name != SUMS}


def _digest(path: Place) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(folder: str | os.PathLike[str], names: Sequence[str] | None = None) -> None:
    """Flush the files under `folder` and write their SHA-256 sums into `folder/SHA256SUMS`.

    If `names` is given, only the files with these names are included. The command `sha256sum` can
    also check the sums.

    Raises:
      CheckpointError: a file cannot be flushed or written.
    """
    folder = place(folder)
    lines = []
    with one_line("write", folder):
        for name, path in _files(folder, names).items():
            if isinstance(path, Path):
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
            lines.append(f"{_digest(path)}  {name}\n")
        if isinstance(folder, Path):
            for inner in (path for path in folder.rglob("*") if path.is_dir()):
                sync_folder(inner)
    write_bytes(folder / SUMS, "".join(lines).encode())


def check(folder: str | os.PathLike[str], names: Sequence[str] | None = None) -> None:
    """Compare files with the checksums that `seal(folder, names)` wrote into `folder/SHA256SUMS`.

    Raises:
      Damaged: a file is missing, superfluous or changed; the error message names the file.
    """
    folder = place(folder)
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
        with one_line("read", path):
            same = _digest(path) == sums[name]
        if not same:
            raise Damaged(f"{path} is damaged: its checksum does not match")
