"""Claims on the folders of a bucket; a claim replaces a lock.

A claim is an object that the owning process renews as long as the process lives. A process that
finds the claim of another process watches the claim. If the claim is not renewed for 45 seconds
(`SLTH_CLAIM_SECONDS`), its owner counts as dead, and the watching process takes over the claim. A
claim that is more than an hour old is taken over at once; no other decision compares the clocks of
two machines.
"""

import contextlib
import dataclasses
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator

from slth_jax import checks
from slth_jax.storage.bucket import Stored
from slth_jax.storage.errors import CheckpointError, Locked
from slth_jax.storage.places import BucketPath

_log = logging.getLogger("slth_jax.storage")
SECONDS = "SLTH_CLAIM_SECONDS"
_LONG = 3600.0  # clocks differ by less, since S3 refuses a difference of 15 minutes


def _period() -> float:
    text = os.environ.get(SECONDS, "45")
    try:
        return float(text)
    except ValueError:
        raise checks.fail(SECONDS, "a number of seconds", repr(text)) from None


class Claim:
    """This process's exclusive claim on a folder, held while the process writes to the folder.

    Attributes:
      place: the path of the object that represents the claim.
    """

    def __init__(self, place: BucketPath):
        """Prepare a claim; `take` writes it to the bucket."""
        self.place = place
        self._token = uuid.uuid4().hex
        self._count = 0
        self._version: bytes | None = None
        self._renewed = 0.0
        self._lost = ""
        self._turn = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew_often, daemon=True)

    def take(self, *, wait: bool) -> None:
        """Take the claim if it is free or its owner is dead; if `wait`, wait for a live owner.

        Raises:
          Locked: `wait` is false and another live process holds the claim.
        """
        while not self._swap():
            stored = self.place.store.read(self.place.key)
            self._version = None if stored is None else stored.version
            if stored is None:
                continue
            if is_live(self.place, stored):
                if wait:
                    continue
                raise in_use(self.place.parent, stored)
            if self.place.store.has(self.place.key):  # the owner has not released the claim
                _log.warning("%s: the claim of %s was not renewed", self.place, owner(stored))
        self._thread.start()

    def _swap(self) -> bool:
        """Write the claim if its version is the one last read; return whether it was written."""
        self._count += 1
        fields = {
            "owner": f"process {os.getpid()} on {socket.gethostname()}",
            "token": self._token,
            "count": self._count,
            "time": round(time.time(), 1),
        }
        begin = time.monotonic()
        data = (json.dumps(fields) + "\n").encode()
        version = self.place.store.swap(self.place.key, self._version, data)
        if version is not None:
            self._version, self._renewed = version, begin
        return version is not None

    def check(self) -> None:
        """Raise an error if this process has lost the claim.

        Raises:
          CheckpointError: another process has taken over the claim, or the folder was removed.
        """
        if time.monotonic() - self._renewed > _period():  # a pause, or a bucket out of reach
            self._renew()
        if self._lost:
            raise CheckpointError(self._lost)

    def _renew(self) -> None:
        with self._turn:
            while not (self._lost or self._stop.is_set() or self._swap()):
                stored = self.place.store.read(self.place.key)
                if stored is not None and self._token in stored.data.decode(errors="replace"):
                    self._version = stored.version  # the version of a renewal whose answer was lost
                    continue
                folder, holder = self.place.parent, stored and owner(stored)
                self._lost = (
                    f"{folder} was taken over by {holder} while this process was paused"
                    if holder
                    else f"{folder} was removed or replaced while it was in use"
                )

    def _renew_often(self) -> None:
        while not self._stop.wait(_period() / 4):
            # Ignored: the next renewal or the next `check` raises the error again.
            with contextlib.suppress(CheckpointError):
                self._renew()

    def release(self) -> None:
        """Delete the claim."""
        self._stop.set()
        if self._thread.ident is None:  # the claim was never taken
            return
        self._thread.join(5)  # the thread may be waiting for a bucket out of reach
        if not self._lost and time.monotonic() - self._renewed < _period():
            with contextlib.suppress(CheckpointError):  # without deletion the claim expires
                self.place.store.swap(self.place.key, self._version, None)


@contextlib.contextmanager
def claimed(
    folder: BucketPath,
    name: str = "lock",
    *,
    against: Callable[[str], bool] = lambda other: False,
    wait: bool = False,
) -> Iterator[Claim]:
    """Hold a claim on a folder for the duration of the `with` block.

    Args:
      folder: the folder to claim.
      name: the claim's name in the folder; one process at a time can hold it.
      against: ``against(other)`` returns whether a live claim with the name `other` excludes this
        claim.
      wait: whether to wait until a live owner releases the claim.

    Raises:
      Locked: another live process holds this claim, or holds a different claim that excludes it.
      CheckpointError: the bucket cannot be written to.
    """
    claim = Claim(folder / name)
    try:
        claim.take(wait=wait)
        # Each process first writes its own claim and then looks for other claims. Therefore at
        # least one of two processes sees the claim of the other.
        for key in folder.store.keys(f"{folder.key}/lock"):
            other = dataclasses.replace(folder, key=key)
            stored = other.store.read(key) if against(other.name) else None
            if stored is None:
                continue
            if is_live(other, stored):
                raise in_use(folder, stored)
            other.store.swap(key, stored.version, None)  # so that no process waits for it again
        yield claim
    finally:
        claim.release()


def is_live(place: BucketPath, stored: Stored) -> bool:
    """Watch another process's claim; return whether it is renewed within `SLTH_CLAIM_SECONDS`."""
    begin, period = time.monotonic(), _period()
    with contextlib.suppress(ValueError, KeyError, TypeError):
        if time.time() - json.loads(stored.data)["time"] > _LONG + period:
            return False
    while time.monotonic() - begin < period:
        time.sleep(min(1.0, period / 20))
        now = place.store.read(place.key)
        if now is None or now.version != stored.version:
            return now is not None
    return False


def owner(stored: Stored) -> str:
    """Return a text that names the process that owns a claim."""
    try:
        return str(json.loads(stored.data)["owner"])
    except (ValueError, KeyError, TypeError):
        return "another process"


def in_use(folder: BucketPath, stored: Stored) -> Locked:
    """Return the `Locked` error for a folder that a live process has claimed."""
    return Locked(f"{folder} is in use by {owner(stored)}; wait for it or stop it")
