"""Locks on folders: locks of the operating system, or claims in a bucket."""

import contextlib
import os
import socket
from collections.abc import Iterator

from slth_jax.storage.claims import claimed
from slth_jax.storage.errors import CheckpointError, Locked, one_line, reason
from slth_jax.storage.files import NO_WAIT, check_regular, make_folder
from slth_jax.storage.places import BucketPath, place


@contextlib.contextmanager
def lock(
    folder: str | os.PathLike[str], *, name: str = "lock", shared: bool = False, wait: bool = False
) -> Iterator[None]:
    """Lock `folder` for the `with` block, so that no other process writes to it.

    For a folder on this machine the operating system's lock is used (`flock` on `folder/name`). The
    lock is released when the process that holds it ends, even if the process is killed; the lock
    file remains. Several processes may hold the lock at the same time if each of them sets
    `shared`. If `wait` is true, the call waits until the lock is free. In a bucket the lock is a
    claim (`claims`), which is never shared.

    Raises:
      Locked: another live process holds the lock; the error message names the process.
      CheckpointError: the folder cannot be written to, or the operating system has no `flock`.
    """
    where = place(folder)
    if isinstance(where, BucketPath):
        with claimed(where, name, wait=wait):
            yield
        return
    make_folder(where)
    path = where.absolute() / name
    try:
        import fcntl
    except ModuleNotFoundError as error:
        line = "this system has no flock; use a bucket (gs:// or s3://), or out=None"
        raise CheckpointError(f"cannot lock {path}: {line}") from error
    with one_line("lock", path):
        # Links are refused: a link of this name would lead to another file.
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | NO_WAIT, 0o666)
    try:
        check_regular(fd, path)
        try:
            kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            fcntl.flock(fd, kind if wait else kind | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(fd, 200, 0).decode(errors="replace").strip() or "another process"
            raise Locked(f"{folder} is in use by {holder}; wait for it or stop it") from error
        except OSError as error:
            raise CheckpointError(f"cannot lock {path}: {reason(error)}") from error
        if os.pread(fd, 8, 0) not in (b"", b"process "):
            raise CheckpointError(f"{path} is a file, not a lock; use another folder")
        with contextlib.suppress(OSError):  # only for the message above; a full disk may refuse it
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)


@contextlib.contextmanager
def lock_shard(folder: str | os.PathLike[str], index: int, count: int) -> Iterator[None]:
    """Lock part `index` of the `count` parts of a run; if `count` is 1, lock the whole `folder`.

    Raises:
      Locked: another live process has locked the folder, or this part of the run.
    """
    with lock(folder, shared=count > 1):
        if count == 1:
            yield
        else:
            with lock(folder, name=f"lock-{index}-of-{count}"):
                yield
