"""What trains together: many runs of one program, or a single run."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np

from slth_jax import checks
from slth_jax.edge_popup.program import Program
from slth_jax.edge_popup.scores import Hparams, Named, State
from slth_jax.types import Array, Key, PyTree

_REDRAW = 1 << 21  # folded into a run's key


@dataclasses.dataclass(frozen=True)
class Runs:
    """Runs that go through training together, or a single one.

    Attributes:
      program: what is compiled for them.
      hparams: Python numbers of a single run, arrays `[run]` of many.
      keys: a typed key, or an array of them `[run]`; re-drawing comes from them.
      start: returns the state before the first step.
      batches: ``batches(begin, end)`` returns those of steps `begin` to `end`: the batch of the one
        step for a single run, `[run, step, row, ...]` for many. The same whenever it is asked.
      validation: batches, the same for all runs; an evaluation is the mean over them.
      draw: ``draw(keys) -> weights by name`` from the source's distribution, for variants that
        re-draw weights.
      names: ``names(index)``, how messages call a run; None where there is a single one.
    """

    program: Program
    hparams: Hparams
    keys: Key
    start: Callable[[], State]
    batches: Callable[[int, int], PyTree]
    validation: Sequence[PyTree] = ()
    draw: Callable[[Key], Named] | None = None
    names: Callable[[int], str] | None = None

    def __post_init__(self):
        if self.program.variant.redraw_every and self.draw is None:
            allowed = "a function of a key for a variant that re-draws weights"
            raise checks.fail("draw", allowed, None)

    def advance(self, state: State, begin: int, end: int) -> tuple[State, Array]:
        """Make the steps `begin` to `end`, re-drawing weights first where the variant does so."""
        every = self.program.variant.redraw_every
        if self.draw is not None and every and begin and begin % every == 0:
            for_fresh, for_choice = self._split(begin)
            fresh = self.draw(for_fresh)
            state = self.program.redraw(for_choice, state, fresh, self.hparams)
        batches = self.batches(begin, end)
        if self.program.runs is not None:
            batches = self.program.place_batches(batches)
        return self.program.advance(state, batches, self.hparams)

    def end_of_stretch(self, begin: int, until: int) -> int:
        """Return where steps from `begin` must stop: at `until`, or before weights are re-drawn."""
        if self.program.runs is None:
            return begin + 1
        every = self.program.variant.redraw_every or until
        return min(until, (begin // every + 1) * every)

    def evaluate(self, state: State, masks: Named | None = None) -> np.ndarray:
        """Return the mean loss on the validation batches, `[]` or `[run]`, under other `masks`."""
        if masks is None:
            masks = self.program.masks(state, self.hparams)
        losses = [
            np.asarray(
                self.program.evaluate(state, masks, self.program.place_validation(batch)),
                np.float64,
            )
            for batch in self.validation
        ]
        return np.mean(losses, axis=0)

    def packed(self, state: State) -> dict[str, np.ndarray]:
        """Return the masks, one bit a connection: `[(run,) bytes]` by name."""
        return jax.tree.map(np.asarray, self.program.packed(state, self.hparams))

    def _split(self, step: int) -> tuple[Key, Key]:
        def split(key: Key) -> Key:
            return jax.random.split(jax.random.fold_in(jax.random.fold_in(key, _REDRAW), step))

        keys = split(self.keys) if self.program.runs is None else jax.vmap(split)(self.keys)
        return keys[..., 0], keys[..., 1]
