"""Paths on this machine (`pathlib.Path`), and paths in a bucket (`BucketPath`).

`place` converts a string to a path of the right kind. A `BucketPath` has those methods of
`pathlib.Path` that this library uses, so callers can use both kinds of path in the same way.
"""

import atexit
import dataclasses
import fnmatch
import functools
import io
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from slth_jax import checks
from slth_jax.storage.bucket import SCHEMES, Bucket, bucket
from slth_jax.storage.errors import CheckpointError, one_line

_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")


@dataclasses.dataclass(frozen=True, order=True)
class BucketPath(os.PathLike[str]):
    """The path of an object or folder in a bucket; a folder consists of all keys under 'KEY/'.

    Attributes:
      scheme: 'gs' or 's3'.
      bucket: the bucket's name.
      key: the path in the bucket, without '/' at either end.
    """

    scheme: str
    bucket: str
    key: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}/{self.key}".rstrip("/")

    __fspath__ = __str__

    def __truediv__(self, name: str | PurePosixPath) -> "BucketPath":
        return dataclasses.replace(self, key=f"{self.key}/{name}".strip("/"))

    @property
    def store(self) -> Bucket:
        """The bucket that contains this object or folder."""
        return bucket(self.scheme, self.bucket)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return PurePosixPath(self.key).name

    @property
    def stem(self) -> str:
        """The name without its last extension."""
        return PurePosixPath(self.key).stem

    @property
    def suffix(self) -> str:
        """The last extension of the name, such as '.json'."""
        return PurePosixPath(self.key).suffix

    @property
    def parent(self) -> "BucketPath":
        """The folder of this object or folder."""
        return dataclasses.replace(self, key=self.key.rpartition("/")[0])

    def with_name(self, name: str) -> "BucketPath":
        """Return the path of the object `name` in the folder of this object."""
        return self.parent / name

    def absolute(self) -> "BucketPath":
        """Return this path unchanged, since paths in buckets are absolute."""
        return self

    def relative_to(self, folder: "BucketPath") -> PurePosixPath:
        """Return the path relative to `folder`."""
        return PurePosixPath(self.key).relative_to(folder.key)

    def exists(self) -> bool:
        """Return whether an object or a folder with this path exists."""
        return self.is_file() or self.is_dir()

    def is_file(self) -> bool:
        """Return whether an object with this path exists."""
        return bool(self.key) and self.store.has(self.key)

    def is_dir(self) -> bool:
        """Return whether this folder contains objects."""
        return bool(self._keys())

    def iterdir(self) -> Iterator["BucketPath"]:
        """Yield the objects and folders in this folder, sorted by name."""
        parts = (key[len(self._prefix) :].partition("/")[0] for key in self._keys())
        return (self / name for name in dict.fromkeys(parts))

    def glob(self, pattern: str) -> Iterator["BucketPath"]:
        """Yield the objects in this folder that match a pattern ('tickets/*', '**/*.json').

        A star matches a name or a part of a name, but not '/'.
        """
        plain = pattern.removeprefix("**/")
        count = plain.count("/") + 1
        for key in self._keys():
            parts = key[len(self._prefix) :].split("/")
            last = "/".join(parts[-count:] if plain != pattern else parts)
            if last.count("/") + 1 == count and fnmatch.fnmatchcase(last, plain):
                yield self / "/".join(parts)

    def stat(self) -> os.stat_result:
        """Return an `os.stat_result` with the object's size; the other fields are all 0."""
        return os.stat_result((0, 0, 0, 0, 0, 0, len(self.read_bytes()), 0, 0, 0))

    def open(self, mode: str = "rb") -> io.BytesIO:
        """Return the object's bytes as a file in memory; changes of the file are not stored."""
        return io.BytesIO(self.read_bytes())

    def read_bytes(self) -> bytes:
        """Return the object's bytes.

        Raises:
          CheckpointError: the object does not exist.
        """
        stored = self.store.read(self.key)
        if stored is None:
            self.store.check()
            raise CheckpointError(f"cannot read {self}: no such object")
        return stored.data

    def read_text(self, errors: str = "strict") -> str:
        """Return the object's text."""
        return self.read_bytes().decode(errors=errors)

    def write_bytes(self, data: bytes) -> None:
        """Write the object, overwriting an object of the same name."""
        self.store.write(self.key, data)

    def unlink(self, missing_ok: bool = True) -> None:
        """Delete the object, if there is one."""
        self.store.delete(self.key)

    def is_symlink(self) -> bool:
        """Return False, since buckets have no links."""
        return False

    @property
    def _prefix(self) -> str:
        return f"{self.key}/" if self.key else ""

    def _keys(self) -> list[str]:
        return self.store.keys(self._prefix)


Place = Path | BucketPath


def place(path: str | os.PathLike[str]) -> Place:
    """Return the path of a file or folder, on this machine or in a bucket (gs://, s3://).

    Raises:
      ValueError: the scheme is unknown, or the bucket's name is invalid.
    """
    if isinstance(path, BucketPath):
        return path
    text = os.fspath(path) if isinstance(path, (str, os.PathLike)) else None
    if not isinstance(text, str):
        raise checks.fail("path", "a string or a path", path)
    if isinstance(path, Path):  # a `Path` turns gs://bucket into gs:/bucket
        text = re.sub(r"^(gs|s3):/(?!/)", r"\1://", text)
    if "://" not in text:
        return Path(text)
    scheme, _, rest = text.partition("://")
    name, _, key = rest.partition("/")
    parts = [part for part in key.split("/") if part not in ("", ".")]
    if scheme not in SCHEMES or not _BUCKET.fullmatch(name) or ".." in parts:
        allowed = f"a path of this machine or {' or '.join(f'{s}://BUCKET/PATH' for s in SCHEMES)}"
        raise checks.fail("path", allowed, repr(text))
    return BucketPath(scheme, name, "/".join(parts))


def remove(path: Place) -> None:
    """Remove a file, or a folder with its contents, if it exists."""
    if isinstance(path, BucketPath):
        for key in path.store.keys(path._prefix) if path.key else ():
            path.store.delete(key)
        path.unlink()
    elif path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with one_line("remove", path):
            path.unlink(missing_ok=True)


class Local:
    """A local file with the bytes at a path, for libraries that cannot read from a bucket.

    Attributes:
      path: the given path if it is local; otherwise the path of a temporary copy, which is deleted
        when this `Local` object is.
    """

    def __init__(self, path: Place):
        if isinstance(path, Path):
            self.path = path
            return
        data = path.read_bytes()
        fd, name = tempfile.mkstemp(prefix="slth-jax-", suffix=path.suffix)
        weakref.finalize(self, os.unlink, name)
        with open(fd, "wb") as file:
            file.write(data)
        self.path = Path(name)


def fetched(path: Place, patterns: tuple[str, ...] = ("*",)) -> Path:
    """Return a local path of a file or folder; only files that match `patterns` are copied.

    A path on this machine is returned unchanged. Objects in a bucket are copied once per process
    into a temporary folder, which is removed when the process ends. All patterns are ignored if the
    path is a single file.
    """
    return path if isinstance(path, Path) else _copied(path, patterns)


@functools.lru_cache(maxsize=64)
def _copied(path: BucketPath, patterns: tuple[str, ...]) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="slth-jax-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    if path.is_file():
        copy = folder / path.name
        copy.write_bytes(path.read_bytes())
        return copy
    copy = folder / (path.name or path.bucket)
    copy.mkdir()
    for pattern in patterns:
        for file in path.glob(pattern):
            inside = copy / file.relative_to(path)
            inside.parent.mkdir(parents=True, exist_ok=True)
            inside.write_bytes(file.read_bytes())
    return copy
