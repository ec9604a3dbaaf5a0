"""A group of runs of one job, and what can be done with them."""

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from experiments.training_functions import functions, stack
from experiments.training_job import Job, Run
from experiments.training_store import Best
from slth_jax import checks, edge_popup, gpt2, placement, supermask
from slth_jax.types import Array, Key, PyTree

_REDRAW, _SHUFFLE = 1 << 21, 1 << 22  # folded into a run's key; the scores use 1 << 20


class Program:
    """Runs that go through training together."""

    def __init__(self, job: Job, runs: Sequence[Run]):
        """Check the runs' settings and lay out the mesh."""
        self.job, self.runs = job, tuple(runs)
        for run in runs:
            checks.number("keep", run.keep, low=0, high=1, open_low=True)
            checks.number("learning_rate", run.learning_rate, low=0)
            checks.number("qk_scale", run.qk_scale)
            checks.integer("seed", run.seed, low=0, high=2**32 - 1)
        self._functions = functions(job, len(runs))
        self.shapes = self._functions.shapes
        self.hparams = edge_popup.Hparams(
            jnp.array([run.keep for run in runs], jnp.float32),
            jnp.array([run.learning_rate for run in runs], jnp.float32),
        )
        self.packed_shapes = jax.eval_shape(self._functions.packed, self.shapes, self.hparams)

    def start(self) -> edge_popup.State:
        """Return the state of all runs before the first step, leaves `[run, ...]`."""
        states = [self._functions.start(_key(run), run.qk_scale) for run in self.runs]
        return jax.device_put(stack(states), self._functions.shardings)

    def advance(
        self, state: edge_popup.State, batches: np.ndarray
    ) -> tuple[edge_popup.State, np.ndarray]:
        """Make the steps of `batches [run, step, row, length + 1]`; losses `[run, step]`."""
        sharding = placement.of_batch(batches, self._functions.mesh, runs=True, steps=True)
        state, losses = self._functions.advance(state, _put(batches, sharding), self.hparams)
        return state, np.asarray(losses)

    def evaluate(self, state: edge_popup.State, tokens: np.ndarray) -> np.ndarray:
        """Return each run's mean loss on windows `[n, length + 1]`."""
        return self._losses(state, self._functions.masks(state, self.hparams), tokens)

    def evaluate_shuffled(
        self, state: edge_popup.State, best: Best, tokens: np.ndarray
    ) -> np.ndarray:
        """Return each run's loss under its best masks with entries in random order."""
        shapes = gpt2.matrix_shapes(self.job.model)
        rows = []
        for index, run in enumerate(self.runs):
            masks = {
                name: supermask.unpack(bits[index], shapes[name])
                for name, bits in best.masks.items()
            }
            rows.append(edge_popup.shuffled(jax.random.fold_in(_key(run), _SHUFFLE), masks))
        return self._losses(state, stack(rows), tokens)

    def packed(self, state: edge_popup.State) -> dict[str, np.ndarray]:
        """Return the masks of all runs, one bit a connection, `[run, bytes]` by name."""
        return jax.tree.map(np.asarray, self._functions.packed(state, self.hparams))

    def segments(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the stretches of steps between which weights are re-drawn."""
        every = self.job.variant.redraw_every or end
        while begin < end:
            stop = min(end, (begin // every + 1) * every)
            yield begin, stop
            begin = stop

    def redraw(self, state: edge_popup.State, step: int) -> edge_popup.State:
        """Draw pruned weights anew if `step` is one at which the variant does so (IteRand)."""
        every = self.job.variant.redraw_every
        if not every or step % every or step >= self.job.recipe.steps:
            return state
        keys = jnp.stack(
            [jax.random.fold_in(jax.random.fold_in(_key(run), _REDRAW), step) for run in self.runs]
        )
        scales = jnp.array([run.qk_scale for run in self.runs], jnp.float32)
        return self._functions.redraw(keys, state, scales, self.hparams)

    def _losses(self, state: edge_popup.State, masks: PyTree, tokens: np.ndarray) -> np.ndarray:
        rows = min(len(tokens), self.job.rows // self.job.accumulate)
        whole = len(tokens) // rows * rows
        batches = tokens[:whole].reshape(-1, rows, tokens.shape[1])
        sharding = placement.of_batch(batches, self._functions.mesh, steps=True)
        return np.asarray(self._functions.evaluate(state, masks, _put(batches, sharding)))


def _key(run: Run) -> Key:
    return jax.random.key(run.seed, impl="threefry2x32")


def _put(array: np.ndarray, sharding: NamedSharding) -> Array:
    return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)
