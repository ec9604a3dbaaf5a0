"""Check a ticket's file: its bytes, its random source, and the error stored in it."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from slth_jax import attention, checks, transformer
from slth_jax.storage import CheckpointError
from slth_jax.ticket.file import open
from slth_jax.ticket.record import Ticket, check_source, materialize
from slth_jax.ticket.sources import Sources
from slth_jax.transformer import Block
from slth_jax.types import ArrayLike, AttentionParams, Memory, PyTree

Target = AttentionParams | Sequence[Block] | Callable[[PyTree], ArrayLike]

# The largest effect that rounding may have on an error, divided by the unit round-off times the
# norm of the outputs. An error is a difference of two outputs, and each output is computed from
# sums of about a thousand products and a softmax.
_ROUNDINGS = 1000


@dataclasses.dataclass(frozen=True, repr=False)
class Report:
    """The result of `verify` for an intact file.

    Attributes:
      ticket: the opened ticket; its masks are read from the file when they are needed.
      size, num_kept: the number of connections that have a mask, and the number of kept
        connections.
      error: the error of the ticket, recomputed; None if no target is given.
      recorded: the error that the file states; None if no target is given.
    """

    ticket: Ticket
    size: int
    num_kept: int
    error: float | None = None
    recorded: float | None = None

    def __repr__(self) -> str:
        share = 100 * self.num_kept / max(self.size, 1)
        error = (
            "" if self.error is None else f", error {self.error:.3g}, {self.recorded:.3g} recorded"
        )
        return f"Report({self.num_kept:,} of {self.size:,} connections kept ({share:.1f} %){error})"


def verify(
    path: str | os.PathLike[str],
    *,
    target: Target | None = None,
    inputs: ArrayLike | None = None,
    memory: Memory | None = None,
    tolerance: float | None = None,
    sources: Sources | None = None,
) -> Report:
    """Check a ticket's file and, if a target is given, the error that the file states.

    The checksums of header and masks and the sizes of the masks are always checked. The source's
    weights are always generated again and compared with the ticket's fingerprint. If `target` is
    given, the error is recomputed and compared with ``metadata['error']``.

    Args:
      path: the file; its masks are read one at a time.
      target: the network that the ticket approximates, `AttentionParams` or transformer blocks; or
        a function that returns the error, given the ticket's masked weights as `materialize`
        returns them.
      inputs: if `target` is a network, the sequences `[s, t, m]` on which the error was measured.
        The error is the largest 2-norm, over the tokens of a sequence, of the difference between
        the outputs of ticket and target. This error is averaged over sequences and computed in
        float64.
      memory: for cross-attention, the sequences `[s, t, n]` from which keys and values are
        computed; or a tuple of two such arrays, for keys and for values. Sequence i belongs to
        ``inputs[i]``.
      tolerance: the largest allowed difference between stored and recomputed error. The default
        (None) allows for rounding: it is 1000 times the machine epsilon times the norm of the
        target's outputs (the largest over tokens, averaged over sequences). The machine epsilon is
        that of float64 if ``metadata['dtype']`` is 'float64', and that of float32 if not. If
        `target` is a function, the default is a thousandth of the recomputed error. The content of
        a file can therefore reduce the default tolerance but not increase it.
      sources: as in `create`.

    Raises:
      ValueError: `target` cannot be used, or `target` is a network and `inputs` is None.
      CheckpointError: the file, its source or its stored error is wrong; the error message
        describes the first fault.
    """
    if tolerance is not None:
        tolerance = checks.number("tolerance", tolerance, low=0)
    ticket = open(path, check=True)
    error = recorded = None
    try:
        if target is None:
            check_source(ticket, sources=sources)
        else:
            masked = materialize(ticket, sources=sources)
            error, rounding = _error(masked, target, inputs, memory, ticket)
            recorded = _compare(ticket, error, rounding if tolerance is None else tolerance)
    except CheckpointError as problem:
        raise CheckpointError(f"{path}: {problem}") from problem
    kept = sum(map(ticket.num_kept, ticket.shapes))
    return Report(ticket, ticket.size, kept, error, recorded)


def _compare(ticket: Ticket, error: float, tolerance: float) -> float:
    """Return the error stored in the file, which must be within `tolerance` of `error`."""
    try:
        recorded = float(ticket.metadata["error"])
    except (KeyError, TypeError, ValueError, OverflowError) as problem:
        raise CheckpointError("records no error in its metadata to be verified") from problem
    if not abs(recorded - error) <= tolerance:
        raise CheckpointError(
            f"the ticket's error is {error:.6g}, not {recorded:.6g} as recorded "
            f"(they may differ by {tolerance:.2g})"
        )
    return recorded


def _error(
    masked: PyTree,
    target: Target,
    inputs: ArrayLike | None,
    memory: Memory | None,
    ticket: Ticket,
) -> tuple[float, float]:
    """Return the ticket's error, and the largest effect that rounding may have on it."""
    if callable(target):
        error = float(np.asarray(target(masked)))
        return error, 1e-3 * abs(error)
    if inputs is None:
        raise checks.fail("inputs", "the sequences [s, t, m] of the recorded error", None)
    run: Any = attention.apply if isinstance(target, AttentionParams) else transformer.apply
    if not isinstance(target, AttentionParams):
        if memory is not None:
            raise checks.fail("memory", "None for a transformer", type(memory).__name__)
        masked = _like(masked, target)
    with jax.enable_x64(True):
        x = checks.array("inputs", np.asarray(inputs, np.float64), ndim=3)
        options = {}
        if memory is not None:
            pair = memory if isinstance(memory, tuple) else (memory, memory)
            options["memory"] = tuple(
                checks.array("memory", np.asarray(part, np.float64), shape=(len(x), None, None))
                for part in pair
            )
        ours, theirs = (
            np.asarray(
                jax.lax.map(lambda pair, net=net: run(net, pair[0], **pair[1]), (x, options))
            )
            for net in (_float64(masked), _float64(target))
        )
    error = np.linalg.norm(ours - theirs, axis=-1).max(axis=-1).mean()
    size = np.linalg.norm(theirs, axis=-1).max(axis=-1).mean()
    dtype = jnp.float64 if ticket.metadata.get("dtype") == "float64" else jnp.float32
    return float(error), float(_ROUNDINGS * jnp.finfo(dtype).eps * size)


def _like(masked: Sequence[Any], target: Sequence[Block]) -> tuple[Block, ...]:
    """Return the ticket as transformer blocks; if it is attention only, add the target's layers."""
    if len(masked) != len(target):
        raise checks.fail("target", f"{len(masked)} blocks", len(target))
    return tuple(
        ours if isinstance(ours, Block) else Block(ours, theirs.layers)
        for ours, theirs in zip(masked, target, strict=True)
    )


def _float64(params: PyTree) -> PyTree:
    def wide(leaf: Any) -> Any:
        return jnp.asarray(np.asarray(leaf, np.float64)) if leaf.dtype != bool else leaf

    return jax.tree.map(wide, params)
