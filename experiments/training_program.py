"""The compiled parts of training: many runs under one vmap, spread over a mesh of devices."""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding

from experiments.training_store import Best
from slth_jax import checks, edge_popup, gpt2, placement, supermask
from slth_jax.types import Array, Key

_REDRAW, _SHUFFLE = 1 << 21, 1 << 22  # folded into a run's key; the scores use 1 << 20


class Run(NamedTuple):
    """The settings that may differ between runs of one program."""

    method: str
    seed: int
    qk_scale: float
    keep: float
    learning_rate: float

    @property
    def name(self) -> str:
        """Return a name for files and messages."""
        return f"{self.method}-scale{self.qk_scale:.4g}-seed{self.seed}"


@dataclasses.dataclass(frozen=True)
class Job:
    """What all runs of a program share.

    Attributes:
      model, recipe, variant: see `gpt2.Config`, `edge_popup.Recipe`, `edge_popup.Variant`.
      rows, length: sequences of a batch, and their length in inputs.
      eval_rows: validation windows; 0 for all.
      chunk: steps between evaluations, each followed by a checkpoint.
      accumulate: parts of a batch that go through the model one after another.
      dtype: of the matrix products, 'float32' or 'bfloat16'.
      remat: recompute blocks in the backward pass.
      dense: train all weights instead of scores.
      mesh: devices along 'run', 'data' and 'model'; empty to fit runs first, then rows.
    """

    model: gpt2.Config
    recipe: edge_popup.Recipe
    variant: edge_popup.Variant
    rows: int
    length: int
    eval_rows: int = 0
    chunk: int = 100
    accumulate: int = 1
    dtype: str = "float32"
    remat: bool = False
    dense: bool = False
    mesh: tuple[int, ...] = ()

    def __post_init__(self):
        checks.integer("rows", self.rows, low=1)
        checks.integer("length", self.length, low=1)
        checks.integer("eval_rows", self.eval_rows, low=0)
        checks.integer("chunk", self.chunk, low=1)
        checks.choice("dtype", self.dtype, ("float32", "bfloat16"))
        if self.length > self.model.max_length:
            allowed = f"at most the model's max_length = {self.model.max_length}"
            raise checks.fail("length", allowed, self.length)
        if self.rows % checks.integer("accumulate", self.accumulate, low=1):
            raise checks.fail("accumulate", f"a divisor of rows = {self.rows}", self.accumulate)
        if self.mesh and len(self.mesh) != 3:
            raise checks.fail("mesh", "three numbers: run, data, model", self.mesh)


class Program:
    """The compiled functions of a job, for a group of runs."""

    def __init__(self, job: Job, runs: Sequence[Run]):
        """Check the runs' settings and lay out the mesh."""
        self.job, self.runs = job, tuple(runs)
        for run in runs:
            checks.number("keep", run.keep, low=0, high=1, open_low=True)
            checks.number("learning_rate", run.learning_rate, low=0)
            checks.number("qk_scale", run.qk_scale)
            checks.integer("seed", run.seed, low=0, high=2**32 - 1)
        self.mesh = _mesh(job, len(runs))
        self.hparams = edge_popup.Hparams(
            jnp.array([run.keep for run in runs], jnp.float32),
            jnp.array([run.learning_rate for run in runs], jnp.float32),
        )
        shapes = jax.eval_shape(lambda: _stack([self._start(run) for run in self.runs]))
        self.shardings = placement.of(shapes, self.mesh, runs=True)
        self.shapes = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            shapes,
            self.shardings,
        )
        self._advance = jax.jit(
            jax.vmap(self._steps), donate_argnums=0, out_shardings=(self.shardings, None)
        )
        self._evaluate = jax.jit(jax.vmap(self._loss_under, in_axes=(0, 0, None)))
        self._masks = jax.jit(jax.vmap(self._masks_of))
        self._packed = jax.jit(jax.vmap(self._packed_of))
        self.packed_shapes = jax.eval_shape(self._packed, self.shapes, self.hparams)
        self._redraw = jax.jit(jax.vmap(self._redrawn), out_shardings=self.shardings)

    def start(self) -> edge_popup.State:
        """Return the state of all runs before the first step, leaves `[run, ...]`."""
        # Run by run: a ticket's recipe draws its weights with this very program.
        return jax.device_put(_stack([self._start(run) for run in self.runs]), self.shardings)

    def advance(
        self, state: edge_popup.State, batches: np.ndarray
    ) -> tuple[edge_popup.State, np.ndarray]:
        """Make the steps of `batches [run, step, row, length + 1]`; losses `[run, step]`."""
        sharding = placement.of_batch(batches, self.mesh, runs=True, steps=True)
        state, losses = self._advance(state, _put(batches, sharding), self.hparams)
        return state, np.asarray(losses)

    def evaluate(self, state: edge_popup.State, tokens: np.ndarray) -> np.ndarray:
        """Return each run's mean loss on windows `[n, length + 1]`."""
        return self._losses(state, self._masks(state, self.hparams), tokens)

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
        return self._losses(state, _stack(rows), tokens)

    def packed(self, state: edge_popup.State) -> dict[str, np.ndarray]:
        """Return the masks of all runs, one bit a connection, `[run, bytes]` by name."""
        return jax.tree.map(np.asarray, self._packed(state, self.hparams))

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
        return self._redraw(keys, state, scales, self.hparams)

    def _start(self, run: Run) -> edge_popup.State:
        weights, trainable = gpt2.start(
            _key(run), self.job.model, qk_scale=run.qk_scale, variant=self.job.variant
        )
        if self.job.dense:
            params = {**weights, **trainable.learned}
            weights, trainable = {}, edge_popup.Trainable({}, params)
        return edge_popup.start(weights, trainable, self.job.recipe)

    def _steps(self, state, batches, hparams):
        step = functools.partial(
            edge_popup.step,
            loss=self._loss,
            recipe=self.job.recipe,
            variant=self.job.variant,
            accumulate=self.job.accumulate,
        )

        def one(state, batch):
            state, metrics = step(state, batch, hparams)
            return state, metrics["loss"]

        return jax.lax.scan(one, state, batches)

    def _loss(self, params: gpt2.Params, tokens: Array) -> Array:
        dtype = jnp.dtype(self.job.dtype)
        return gpt2.loss(params, tokens, self.job.model, dtype=dtype, remat=self.job.remat)

    def _masks_of(self, state, hparams):
        return edge_popup.masks(state.trainable.scores, hparams.keep, self.job.variant)

    def _packed_of(self, state, hparams):
        return jax.tree.map(supermask.pack, self._masks_of(state, hparams))

    def _loss_under(self, state, masks, batches):
        params = {**state.weights, **state.trainable.learned}
        params |= {name: params[name] * mask for name, mask in masks.items()}
        return jnp.mean(jax.lax.map(lambda batch: self._loss(params, batch), batches))

    def _losses(self, state, masks, tokens: np.ndarray) -> np.ndarray:
        rows = math.gcd(len(tokens), max(1, self.job.rows // self.job.accumulate))
        batches = tokens.reshape(-1, rows, tokens.shape[1])
        sharding = placement.of_batch(batches, self.mesh, steps=True)
        return np.asarray(self._evaluate(state, masks, _put(batches, sharding)))

    def _redrawn(self, key: Key, state, scale, hparams):
        for_fresh, for_choice = jax.random.split(key)
        fresh = gpt2.init(for_fresh, self.job.model, qk_scale=scale)
        return edge_popup.redraw(for_choice, state, fresh, hparams.keep, self.job.variant)


def _key(run: Run) -> Key:
    return jax.random.key(run.seed, impl="threefry2x32")


def _stack(trees: Sequence):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _put(array: np.ndarray, sharding: NamedSharding) -> Array:
    return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)


def _mesh(job: Job, runs: int) -> jax.sharding.Mesh:
    devices = jax.device_count()
    if job.mesh:
        sizes = tuple(checks.integer("mesh", size, low=1) for size in job.mesh)
        if math.prod(sizes) != devices:
            raise checks.fail("mesh", f"of {devices} devices in all", job.mesh)
    else:
        along_runs = math.gcd(runs, devices)
        along_rows = math.gcd(job.rows // job.accumulate, devices // along_runs)
        sizes = (along_runs, along_rows, devices // along_runs // along_rows)
    return jax.make_mesh(sizes, ("run", "data", "model"), axis_types=(AxisType.Auto,) * 3)
