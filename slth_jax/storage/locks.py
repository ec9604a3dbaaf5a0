"""Locks on folders by the operating system: they end with the process that holds them."""

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator

from slth_jax.storage.files import (
    CheckpointError,
    Locked,
    check_regular,
    make_folder,
    one_line,
    reason,
)


@contextlib.contextmanager
def lock(
    folder: str | os.PathLike[str], *, name: str = "lock", shared: bool = False, wait: bool = False
) -> Iterator[None]:
    """Hold `folder` while the block runs, so that no other process writes to it.

    The lock is the operating system's (`flock` on `folder/name`), so it ends with the process
    that holds it, even when that is killed; the file itself stays. Several processes may hold a
    `shared` lock at once, but not beside an unshared one. With `wait` the block runs once the
    lock is free.

    Raises:
      Locked: another live process holds it; the line names it.
      CheckpointError: the folder cannot be written to.
    """
    path = make_folder(folder) / name
    with one_line("lock", path):
        # A link of this name would lead to another file, which must not be written to.
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(path, flags, 0o666)
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
        with contextlib.suppress(OSError):  # for the message above only; a full disk may refuse it
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)


@contextlib.contextmanager
def lock_shard(folder: str | os.PathLike[str], index: int, count: int) -> Iterator[None]:
    """Hold `folder` for part `index` of `count`: exclusively if there is one part only.

    Raises:
      Locked: another live process holds the folder, or this part of it.
    """
    with lock(folder, shared=count > 1):
        if count == 1:
            yield
        else:
            with lock(folder, name=f"lock-{index}-of-{count}"):
                yield
