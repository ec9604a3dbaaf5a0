"""Save and load trees of arrays on disk, through Orbax."""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from slth_jax.storage.errors import CheckpointError, Damaged, reason
from slth_jax.types import PyTree


def save_tree(path: str | os.PathLike[str], tree: PyTree) -> Callable[[], None]:
    """Start saving a tree of arrays with Orbax; return a function that waits until all is saved.

    In a run of several processes every process must call `save_tree` and the returned function. The
    arrays must be NumPy arrays that are equal on every process, or JAX arrays that are sharded over
    the processes. Each process writes only its own shards.

    Raises:
      CheckpointError: Orbax cannot write the tree; `save_tree` or the returned function raises this
        error.
    """
    # Imported here because the import takes a second, which tickets and plain files do not need.
    from orbax.checkpoint import v1 as ocp

    path = Path(path).absolute()

    def in_one_line(step: Callable[[], Any]) -> Any:
        try:
            with _quiet():
                return step()
        except Exception as error:  # Orbax and TensorStore raise errors of many types
            raise CheckpointError(f"cannot write {path}: {reason(error)}") from error

    def start() -> Any:
        context = ocp.Context()
        # Without this, it would take minutes until a folder that cannot be created is noticed.
        context.asynchronous.create_directories_asynchronously = False
        with context:
            return ocp.save_async(path, tree)

    response = in_one_line(start)
    return lambda: in_one_line(response.result)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress Orbax's log, which repeats the stack trace of an exception that is raised anyway."""
    log = logging.getLogger("absl")

    def keep(record: logging.LogRecord) -> bool:
        return f"orbax{os.sep}checkpoint" not in record.pathname

    log.addFilter(keep)
    try:
        yield
    finally:
        log.removeFilter(keep)


def load_tree(path: str | os.PathLike[str], like: PyTree) -> PyTree:
    """Return the tree of arrays that `save_tree` wrote to `path`.

    Args:
      path: the folder to which `save_tree` wrote.
      like: a tree with the structure, shapes and dtypes of the saved tree; its leaves are NumPy
        arrays, or `jax.ShapeDtypeStruct`s with a sharding.

    Raises:
      Damaged: Orbax cannot read the tree. Orbax does not notice every changed byte, so call
        `sums.check` on the folder first.
    """
    from orbax.checkpoint import v1 as ocp

    path = Path(path).absolute()
    try:
        return ocp.load(path, like)
    except Exception as error:
        raise Damaged(f"{path} is damaged: {reason(error)}") from error
