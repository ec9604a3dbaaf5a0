"""The operations on a run's folder that differ between a disk and a bucket.

On a disk a lock protects a run. A piece (a saved result of the run) is written under a temporary
name and then renamed. In a bucket a claim protects a run. A piece in a bucket is one object, which
is written only if no object with this name exists. The configuration of a run in a bucket is
overwritten only if it is still the version that this process read.
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
    """The operations on a run's folder that is on this machine."""

    def __init__(self, path: Path):
        self._path = path
        self._watched: dict[Path, int] = {}  # open folders while the run is locked

    def form(self, form: Form) -> Form:
        """Return `form`: on a disk, pieces (saved results) are stored in the requested format."""
        return form

    def hold(self, index: int, count: int) -> contextlib.AbstractContextManager[None]:
        """Lock part `index` of the run's `count` parts for the duration of the `with` block."""
        return lock_shard(self._path, index, count)

    @contextlib.contextmanager
    def watch(self, *folders: Path) -> Iterator[None]:
        """Let `check` detect, within the `with` block, that a folder was removed or replaced.

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
        """Raise an error if a watched folder was removed, moved or replaced.

        Raises:
          CheckpointError: a watched folder was removed, moved or replaced.
        """
        for folder, fd in self._watched.items():
            if not folder.is_dir() or not os.path.samestat(os.fstat(fd), os.stat(folder)):
                raise CheckpointError(f"{folder} was removed or replaced while it was in use")

    def deciding(self) -> contextlib.AbstractContextManager[None]:
        """Lock the configuration file, which all parts of the run share, for the `with` block."""
        return lock(self._path, name="lock-config", wait=True)

    def set_aside(self, place: Path, folder: Path) -> None:
        """Move a damaged piece (a saved result) into `folder`, under an unused name."""
        make_folder(folder)
        names = (folder / f"{place.name}.{i}" for i in itertools.count())
        move(place, next(name for name in names if not name.exists()))

    def version(self, path: Path) -> None:
        """Return None: on a disk `replace` needs no version, since `deciding` holds a lock."""

    def replace(self, path: Path, data: bytes, version: bytes | None) -> bool:
        """Write a file and return True; `version` is ignored, since `deciding` holds a lock."""
        write_bytes(path, data)
        return True


class InBucket:
    """The operations on a run's folder that is in a bucket; `OnDisk` describes the methods."""

    def __init__(self, path: BucketPath):
        self._path = path
        self._claim: Claim | None = None

    def form(self, form: Form) -> Objects:
        """Return `Objects`, the only format of pieces in a bucket; `form` is ignored."""
        return Objects()

    @contextlib.contextmanager
    def hold(self, index: int, count: int) -> Iterator[None]:
        """Claim part `index` of the run's `count` parts; other processes may claim other parts."""
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
        """Do nothing: in a bucket `check` examines the claim instead of watched folders."""
        return contextlib.nullcontext()

    def check(self) -> None:
        """Raise an error if the claim was removed or taken over.

        Raises:
          CheckpointError: the claim was removed or taken over.
        """
        if self._claim is not None:
            self._claim.check()

    def deciding(self) -> contextlib.AbstractContextManager[None]:
        """Do nothing: no lock is needed, since `replace` overwrites only the version it expects."""
        return contextlib.nullcontext()

    def set_aside(self, place: BucketPath, folder: BucketPath) -> None:
        """Copy a damaged object to an unused name in `folder`, then delete the original."""
        data = place.read_bytes()
        names = (folder / f"{place.name}.{i}" for i in itertools.count())
        next(name for name in names if name.store.swap(name.key, None, data) is not None)
        remove(place)

    def version(self, path: BucketPath) -> bytes | None:
        """Return the stored version of an object; None if the object does not exist."""
        stored = path.store.read(path.key)
        return None if stored is None else stored.version

    def replace(self, path: BucketPath, data: bytes, version: bytes | None) -> bool:
        """Write an object if its version is still `version`; return whether it was written."""
        return path.store.swap(path.key, version, data) is not None


def medium(path: Place) -> OnDisk | InBucket:
    """Return the operations on a run's folder at `path`: `OnDisk` or `InBucket`."""
    return InBucket(path) if isinstance(path, BucketPath) else OnDisk(path)
