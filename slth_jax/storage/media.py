"""A run's folder on a disk or in a bucket: the operations that differ between the two.

On a disk a lock protects a run, and a piece is written under a temporary name and then renamed. In
a bucket a claim protects a run, and a piece is one object, which is written only if no object has
its name. A version of the configuration is overwritten only after it was read.
"""

import contextlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

from slth_jax.storage.claims import Claim, claimed
from slth_jax.storage.errors import CheckpointError, one_line
from slth_jax.storage.files import make_folder, move, write_bytes
from slth_jax.storage.locks import lock, lock_shard
from slth_jax.storage.objects import Objects
from slth_jax.storage.pieces import Form
from slth_jax.storage.places import BucketPath, Place, remove


class OnDisk:
    """The operations of a run's folder on this machine."""

    def __init__(self, path: Path):
        self._path = path
        self._watched: dict[Path, int] = {}  # open folders while the run is locked

    def form(self, form: Form) -> Form:
        """Return the format in which this folder stores pieces; on a disk this is `form`."""
        return form

    def hold(self, index: int, count: int) -> contextlib.AbstractContextManager[None]:
        """Lock part `index` of `count` of the run in this folder for the `with` block."""
        return lock_shard(self._path, index, count)

    @contextlib.contextmanager
    def watch(self, *folders: Path) -> Iterator[None]:
        """Let `check` notice if one of these folders was removed or replaced.

        The folders are kept open, so that no other folder can get their inode numbers.
        """
        with contextlib.ExitStack() as stack:
            stack.callback(self._watched.clear)
            for folder in set(folders) if hasattr(os, "O_DIRECTORY") else ():
                with one_line("open", folder):
                    self._watched[folder] = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
                stack.callback(os.close, self._watched[folder])
            yield

    def check(self) -> None:
        """Raise an error if the folder was removed, moved or replaced.

        Raises:
          CheckpointError: the folder with the finished pieces is not there any more.
        """
        for folder, fd in self._watched.items():
            if not folder.is_dir() or not os.path.samestat(os.fstat(fd), os.stat(folder)):
                raise CheckpointError(f"{folder} was removed or replaced while it was in use")

    def deciding(self) -> contextlib.AbstractContextManager[None]:
        """Lock the configuration, which all shards share, for the `with` block."""
        return lock(self._path, name="lock-config", wait=True)

    def set_aside(self, place: Path, folder: Path) -> None:
        """Move a damaged piece into `folder`, under an unused name."""
        make_folder(folder)
        names = (folder / f"{place.name}.{i}" for i in itertools.count())
        move(place, next(name for name in names if not name.exists()))

    def version(self, path: Path) -> None:
        """Return None: on a disk `replace` needs no version, since `deciding` holds a lock."""

    def replace(self, path: Path, data: bytes, version: bytes | None) -> bool:
        """Write a file if its version is still `version`; return whether it was written."""
        write_bytes(path, data)
        return True


class InBucket:
    """The operations of a run's folder in a bucket; `OnDisk` describes the methods."""

    def __init__(self, path: BucketPath):
        self._path = path
        self._claim: Claim | None = None

    def form(self, form: Form) -> Objects:
        """Return the format of pieces in a bucket, which needs no renaming."""
        return Objects()

    @contextlib.contextmanager
    def hold(self, index: int, count: int) -> Iterator[None]:
        """Claim the folder, or one part of it; claims on different parts are compatible."""
        self._path.store.check()
        name = "lock" if count == 1 else f"lock-{index}-of-{count}"
        # A claim on the whole run excludes claims on its parts, and the reverse.
        with claimed(
            self._path, name, against=lambda o: (o == "lock") != (name == "lock")
        ) as claim:
            self._claim = claim
            try:
                yield
            finally:
                self._claim = None

    def watch(self, *folders: BucketPath) -> contextlib.AbstractContextManager[None]:
        """Do nothing, since `check` checks the claim instead."""
        return contextlib.nullcontext()

    def check(self) -> None:
        """Raise an error if the claim was removed or taken over.

        Raises:
          CheckpointError: the claim was removed or taken over.
        """
        if self._claim is not None:
            self._claim.check()

    def deciding(self) -> contextlib.AbstractContextManager[None]:
        """Do nothing, since `replace` overwrites only the version that was read."""
        return contextlib.nullcontext()

    def set_aside(self, place: BucketPath, folder: BucketPath) -> None:
        """Copy the object, then delete it."""
        data = place.read_bytes()
        names = (folder / f"{place.name}.{i}" for i in itertools.count())
        next(name for name in names if name.store.swap(name.key, None, data) is not None)
        remove(place)

    def version(self, path: BucketPath) -> bytes | None:
        """Return the version of the object; None if it is missing."""
        stored = path.store.read(path.key)
        return None if stored is None else stored.version

    def replace(self, path: BucketPath, data: bytes, version: bytes | None) -> bool:
        """Write the object if its version is still `version`; return whether it was written."""
        return path.store.swap(path.key, version, data) is not None


def medium(path: Place) -> OnDisk | InBucket:
    """Return the operations for a run's folder at `path`, on a disk or in a bucket."""
    return InBucket(path) if isinstance(path, BucketPath) else OnDisk(path)
