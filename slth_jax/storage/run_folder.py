"""The folder of a run: its configuration, its lock and its pieces (results that survive a kill).

    RUN/config.json     everything that the results depend on; written with the first piece
    RUN/PIECES/NAME     a piece: arrays and notes, with checksums and labels of its run
    RUN/damaged/        pieces that were changed after they were written
    RUN/lock            held while a process works in the folder

Sweeps, trainings, hidden models and experiments store their results in such folders. The folder may
also be in a bucket; `media` contains the operations that differ between disk and bucket.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from slth_jax import checks
from slth_jax.distributed import on_first
from slth_jax.storage.differences import difference, explain, without
from slth_jax.storage.errors import CheckpointError, Damaged
from slth_jax.storage.files import json_bytes, make_folder, plain, read_json
from slth_jax.storage.hashes import json_hash
from slth_jax.storage.media import medium
from slth_jax.storage.pieces import DAMAGED, Folders, Form
from slth_jax.storage.places import Place, place
from slth_jax.types import PyTree

_log = logging.getLogger("slth_jax.storage")
CONFIG = "config.json"
# A function ``explain(difference, stored, new)`` that returns a description.
Explain = Callable[[tuple[str, Any, Any], Mapping[str, Any], Mapping[str, Any]], str]


class RunFolder:
    """The folder of a run. Every process of the run must call `claim`, `save` and `load`.

    Attributes:
      path: the folder.
      config: everything that the run's results depend on, as values that JSON can store.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        config: Mapping[str, Any],
        *,
        kind: str = "run",
        grows: Collection[str] = (),
        ignores: Collection[str] = (),
        optional: Collection[str] = (),
        shard: str | None = None,
        pieces: str | None = "pieces",
        form: Form = Folders(),  # noqa: B008
        explain: Explain = explain,
    ):
        """Describe a run; nothing is read or written yet.

        Args:
          path: the output folder, on this machine or in a bucket (gs://, s3://). It must be new or
            already belong to this run.
          config: everything that the results depend on.
          kind: the word that error messages use for the run.
          grows: the paths in `config`, such as 'plan.seeds', of lists that a later call may extend.
            A folder with a shorter list is accepted if the list in `config` begins with the entries
            of the folder's list.
          ignores: paths in `config` whose values are written but not compared.
          optional: names in `config` that earlier versions did not write. A name in `optional` is
            compared only if both the folder's configuration and `config` contain it.
          shard: 'i/n' if this process computes the i-th of n parts, which share the folder; None if
            the run is not split.
          pieces: the folder of the pieces inside `path`; '' for `path` itself; None for a run
            without pieces.
          form: the format of a piece on a disk; in a bucket the format is always `Objects`.
          explain: ``explain(difference, stored, new)`` returns a description of a difference.
        """
        self.path, self.config = place(path).absolute(), plain(config, "config")
        if isinstance(self.path, Path) and ("[" in str(path) or "]" in str(path)):
            # Refused because Orbax interprets brackets as a pattern.
            raise checks.fail("path", "a folder without [ and ]", repr(str(path)))
        self._medium: Any = medium(self.path)
        self._kind, self._grows, self._ignores, self._optional = kind, grows, ignores, optional
        self._shard, self._explain = checks.shard(shard), explain
        self._form: Any = self._medium.form(form)
        self._pieces = None if pieces is None else self.path / pieces
        self._aside = f".{self._shard[0]}-of-{self._shard[1]}.tmp"
        # Values that may grow are left out, because a run with more seeds is still the same run.
        self._identity = json_hash(without(self.config, {*grows, *ignores, *optional}))

    @contextlib.contextmanager
    def claim(self) -> Iterator[None]:
        """Lock the folder, or only this shard of the run, for the duration of the `with` block.

        Raises:
          Locked: another live process has locked the folder or this shard.
          CheckpointError: the folder belongs to another run; the error message names the first
            difference.
        """
        with contextlib.ExitStack() as stack:
            on_first(lambda: stack.enter_context(self._medium.hold(*self._shard)))
            on_first(self._open)
            watched = {self.path, self._pieces or self.path}
            on_first(lambda: stack.enter_context(self._medium.watch(*watched)))
            yield

    def _open(self) -> None:
        with self.deciding():
            self.compare()
        if self._pieces is not None:
            make_folder(self._pieces)
            self._form.clean(self._pieces, ".tmp" if self._shard[1] == 1 else self._aside)

    def deciding(self) -> contextlib.AbstractContextManager[None]:
        """Lock the configuration file, which all shards of the run share, for the `with` block."""
        return self._medium.deciding()

    def recorded(self) -> dict[str, Any] | None:
        """Return the configuration in the folder; None if no run has stored a result in the folder.

        Raises:
          CheckpointError: the folder contains pieces but no configuration.
          Damaged: the bytes of the configuration have changed.
        """
        path = self.path / CONFIG
        if self._pieces is not None and not self.names():
            return None  # written by a process that was killed before its first piece
        if not path.exists():
            if self._pieces is None:
                return None
            raise CheckpointError(
                f"{self.path} has results but {path} is missing; use a new folder"
            )
        return read_json(path, checksum=None)

    def compare(self) -> None:
        """Raise an error if the folder belongs to another run.

        Raises:
          CheckpointError: the folder belongs to another run; the error message names the first
            difference.
        """
        stored = self.recorded()
        if stored is not None:
            self._compare(stored, self.config)

    def _compare(self, stored: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        # Places that may grow are compared last, since other differences explain more.
        absent = [name for name in self._optional if name not in stored or name not in new]
        ignores = {*self._ignores, *absent}
        fixed = difference(stored, new, ignores={*self._grows, *ignores})
        parts = fixed or difference(stored, new, grows=self._grows, ignores=ignores)
        if parts is not None:
            words = self._explain(parts, stored, new)
            if parts[0] in self._grows:
                words += " (it may go on with these and more behind them)"
            raise CheckpointError(
                f"{self.path} holds another {self._kind}: {words}; use a new folder"
            )

    def record(self) -> None:
        """Write the configuration, unless the folder has this run's configuration with more seeds.

        Only the first process calls this function, when it has a result to save. A run that fails
        before its first result leaves the folder free for another run.
        """
        while True:
            version = self._medium.version(self.path / CONFIG)
            stored = self.recorded()
            if stored is not None:
                with contextlib.suppress(CheckpointError):
                    self._compare(self.config, stored)  # another shard may have added seeds
                    return
                self._compare(stored, self.config)
            data = json_bytes(self.config, checksum=True)
            if self._medium.replace(self.path / CONFIG, data, version):
                return

    def names(self) -> list[str]:
        """Return the sorted names of all pieces, complete or damaged."""
        return [] if self._pieces is None else self._form.names(self._pieces)

    def has(self, name: str) -> bool:
        """Return whether a piece exists, complete or damaged."""
        return self._place(name).exists()

    def _place(self, name: str) -> Place:
        assert self._pieces is not None
        return self._pieces / f"{name}{self._form.suffix}"

    def whole(self, name: str, contents: Any = None) -> bool:
        """Return whether this run has an intact piece `name`; move a bad piece into 'damaged'."""
        if not self.has(name):
            return False
        try:
            self._notes(name, contents, self._form.check)
        except Damaged as error:
            aside = self.path / DAMAGED
            self._medium.set_aside(self._place(name), aside)
            _log.warning("%s; moved to %s, it is computed again", error, aside)
            return False
        return True

    def _notes(
        self, name: str, contents: Any, read: Callable[[Place], dict[str, Any]]
    ) -> dict[str, Any]:
        """Check that a piece belongs to this run; return the notes of the piece."""
        notes = read(self._place(name))
        labels = {"run": self._identity, "piece": name, "contents": plain(contents)}
        # Pieces of the first versions have no labels.
        if "run" in notes and {key: notes.get(key) for key in labels} != labels:
            raise Damaged(f"{self._place(name)} belongs to another {self._kind} or place")
        return notes

    def save(
        self,
        name: str,
        arrays: PyTree,
        notes: Mapping[str, Any] | None = None,
        *,
        contents: Any = None,
    ) -> Callable[[], None]:
        """Start saving a piece (arrays with notes); return a function that completes the save.

        Args:
          name: the name of the piece.
          arrays: the tree of arrays; if the format is `Files`, a dict from name to NumPy array.
          notes: a dict of values that JSON can store, saved with the piece; None for no notes.
          contents: a label for the piece's contents, such as the indices of its trials; `load` must
            be called with an equal label.

        Raises:
          CheckpointError: the piece cannot be written, or another run has taken over the folder.
        """
        at = self._place(name)
        aside = at.with_name(f"{name}{self._aside}")
        labels = {"run": self._identity, "piece": name, "contents": plain(contents)}
        on_first(self._medium.check)
        pending = self._form.start(at, aside, arrays, {**plain(notes or {}), **labels})

        def commit() -> None:
            self._medium.check()
            with self.deciding():
                self.record()
                pending.commit()

        def finish() -> None:
            pending.finish()
            on_first(commit)

        return finish

    def load(
        self, name: str, like: PyTree = None, *, contents: Any = None
    ) -> tuple[PyTree, dict[str, Any]]:
        """Return the arrays and the notes of a piece.

        Args:
          name: the name of the piece.
          like: the structure, shapes and dtypes of the arrays (see `storage.load_tree`); None if
            the piece was saved as `Files`.
          contents: the label that was passed to `save`.

        Raises:
          Damaged: a byte of the piece has changed, or its labels (run, name, contents) are wrong.
        """
        notes = self._notes(name, contents, self._form.notes)
        return self._form.load(self._place(name), like), notes

    def drop(self, name: str) -> None:
        """Remove a piece."""
        on_first(lambda: self._form.drop(self._place(name)))
