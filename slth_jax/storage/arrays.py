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
    """Start an asynchronous Orbax save of a tree of arrays; return a function that finishes it.

    In a run of several processes every process must call both functions, with equal NumPy arrays or
    with JAX arrays that are sharded over the processes. Each process then writes its own shards.

    Raises:
      CheckpointError: Orbax cannot write; either of the two calls may raise this.
    """
    # Imported inside: it takes a second, which tickets and plain files need not wait for.
    from orbax.checkpoint import v1 as ocp

    path = Path(path).absolute()

    def in_one_line(step: Callable[[], Any]) -> Any:
        try:
            with _quiet():
                return step()
        except Exception as error:  # Orbax and TensorStore raise many kinds
            raise CheckpointError(f"cannot write {path}: {reason(error)}") from error

    def start() -> Any:
        context = ocp.Context()
        # Otherwise a folder that cannot be created would be noticed only after minutes.
        context.asynchronous.create_directories_asynchronously = False
        with context:
            return ocp.save_async(path, tree)

    response = in_one_line(start)
    return lambda: in_one_line(response.result)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the log free of the stack traces that Orbax's threads print beside the exception."""
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
      path: the folder of the save.
      like: a tree of the same structure whose leaves have the shapes and dtypes to read: NumPy
        arrays, or `jax.ShapeDtypeStruct`s with a sharding.

    Raises:
      Damaged: Orbax cannot read the tree. Orbax does not notice every changed byte, so `check` a
        sealed folder first.
    """
    from orbax.checkpoint import v1 as ocp

    path = Path(path).absolute()
    try:
        return ocp.load(path, like)
    except Exception as error:
        raise Damaged(f"{path} is damaged: {reason(error)}") from error
