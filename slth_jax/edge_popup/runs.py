"""Runs that are trained together by one program."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped, UInt8

from slth_jax import checks
from slth_jax.edge_popup.program import Program
from slth_jax.edge_popup.scores import Keep, Named, State
from slth_jax.types import Key, PyTree

_REDRAW = 1 << 21  # folded into a run's key to make the keys of re-drawings


@dataclasses.dataclass(frozen=True)
class Runs:
    """Runs that are trained together; the first axis of all arrays is the run.

    Attributes:
      program: the compiled functions of the runs.
      keys: typed PRNG keys `[run]`, for re-drawing weights, sampling masks and random losses.
      keep: the fractions to keep `[run]`, or a dict from array name to such fractions.
      steps: the number of optimiser steps of each run.
      start: a function that returns the state of all runs before the first step.
      batches: ``batches(begin, end)`` returns the batches of steps ``begin, ..., end - 1``, see
        `Program`. Repeated calls with the same arguments return the same batches.
      validation: the validation batches, the same for all runs; an evaluation is the mean over
        batches.
      draw: ``draw(keys)`` returns a dict from array name to new weights from the source's
        distribution. Only variants that re-draw weights need `draw`.
      control: booleans `[run]`, True if a run is a control; None if there are no controls.
      stretch: the largest number of steps per call of the program; None for all steps up to the
        next evaluation.
      names: ``names(index)`` returns a run's name for error messages.
    """

    program: Program
    keys: Key
    keep: Keep
    steps: int
    start: Callable[[], State]
    batches: Callable[[int, int], PyTree]
    validation: Sequence[PyTree] = ()
    draw: Callable[[Key], Named] | None = None
    control: Bool[Array, " run"] | None = None
    stretch: int | None = None
    names: Callable[[int], str] = "run {}".format

    def __post_init__(self):
        checks.integer("steps", self.steps, low=1)
        if self.program.task.variant.redraw_every and self.draw is None:
            allowed = "a function of a key for a variant that re-draws weights"
            raise checks.fail("draw", allowed, None)

    @functools.cached_property
    def _placed(self) -> tuple[Key, Keep, Bool[Array, " run"] | None]:
        """The keys, fractions and control flags of all runs, placed on the mesh."""
        return self.program.place((self.keys, self.keep, self.control))

    def advance(
        self, state: State, begin: int, end: int
    ) -> tuple[State, dict[str, Float[Array, "run step"]]]:
        """Make steps ``begin, ..., end - 1``; first re-draw weights if this is due at `begin`."""
        every = self.program.task.variant.redraw_every
        if self.draw is not None and every and begin and begin % every == 0:
            for_fresh, for_choice = self._split(begin)
            fresh = self.program.place(dict(self.draw(for_fresh)))
            for_choice, (_, keep, control) = self.program.place(for_choice), self._placed
            state = self.program.redraw(for_choice, state, fresh, keep, control)
        batches = self.program.place_batches(self.batches(begin, end))
        keys, keep, control = self._placed
        return self.program.advance(keys, state, batches, keep, control)

    def end_of_stretch(self, begin: int, until: int) -> int:
        """Return the step at which a call that starts at step `begin` ends (exclusive).

        The call ends at `until`, at the next re-drawing of weights, or after `stretch` steps,
        whichever comes first.
        """
        every = self.program.task.variant.redraw_every or until
        return min(until, (begin // every + 1) * every, begin + (self.stretch or until))

    def evaluate(
        self, state: State, masks: Named | None = None
    ) -> dict[str, Shaped[np.ndarray, " run"]]:
        """Return measurements, averaged over the validation batches, under `masks`.

        If `masks` is None, the masks of `state` are used.
        """
        keys, keep, control = self._placed
        if masks is None:
            masks = self.program.masks(keys, state, keep, control)
        else:
            masks = self.program.place(dict(masks))
        parts = []
        for batch in self.validation:
            rows = self.program.place_validation(batch)
            measured = self.program.evaluate(state, masks, rows, control)
            parts.append({name: np.asarray(x, np.float64) for name, x in measured.items()})
        return {name: np.mean([part[name] for part in parts], axis=0) for name in parts[0]}

    def packed(self, state: State) -> dict[str, UInt8[Array, "run bytes"]]:
        """Return a dict from array name to packed mask, one bit per connection."""
        keys, keep, control = self._placed
        return self.program.packed(keys, state, keep, control)

    def _split(self, step: int) -> tuple[Key, Key]:
        def split(key: Key) -> Key:
            return jax.random.split(jax.random.fold_in(jax.random.fold_in(key, _REDRAW), step))

        keys = jax.vmap(split)(self.keys)
        return keys[..., 0], keys[..., 1]
