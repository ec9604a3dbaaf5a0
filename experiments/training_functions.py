"""The compiled functions of a job: many runs under one vmap, spread over a mesh of devices."""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import AxisType

from experiments.training_job import Job
from slth_jax import checks, edge_popup, gpt2, placement, supermask
from slth_jax.types import Array, ArrayLike, Key, PyTree


@functools.lru_cache(maxsize=8)
def functions(job: Job, count: int) -> "Functions":
    """Return the functions for `count` runs of a job, the same ones for every group of runs."""
    return Functions(job, count)


class Functions:
    """Compiled at first use and never again: what runs differ in is traced.

    Attributes:
      mesh: the devices, axes 'run', 'data' and 'model'.
      shardings, shapes: of the state of all runs.
      advance: ``(state, batches, hparams) -> (state, losses)``; takes the old state's memory.
      evaluate: ``(state, masks, batches) -> losses``.
      masks, packed: ``(state, hparams) -> masks``, as booleans and as bits.
      redraw: ``(keys, state, scales, hparams) -> state``.
    """

    def __init__(self, job: Job, count: int):
        """Lay out the mesh; nothing is compiled yet."""
        self._job = job
        self.mesh = _mesh(job, count)
        key = jax.random.key(0, impl="threefry2x32")
        shapes = jax.eval_shape(lambda: stack([self.start(key, 1.0)] * count))
        self.shardings = placement.of(shapes, self.mesh, runs=True)
        self.shapes = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            shapes,
            self.shardings,
        )
        self.advance = jax.jit(
            jax.vmap(self._steps), donate_argnums=0, out_shardings=(self.shardings, None)
        )
        self.evaluate = jax.jit(jax.vmap(self._evaluate, in_axes=(0, 0, None)))
        self.masks = jax.jit(jax.vmap(self._masks))
        self.packed = jax.jit(jax.vmap(self._packed))
        self.redraw = jax.jit(jax.vmap(self._redraw), out_shardings=self.shardings)

    def start(self, key: Key, qk_scale: ArrayLike) -> edge_popup.State:
        """Return the state of one run before the first step; not compiled as a whole.

        A ticket's recipe draws its weights with the very program that is used here.
        """
        weights, trainable = gpt2.start(
            key, self._job.model, qk_scale=qk_scale, variant=self._job.variant
        )
        if self._job.dense:
            params = {**weights, **trainable.learned}
            weights, trainable = {}, edge_popup.Trainable({}, params)
        return edge_popup.start(weights, trainable, self._job.recipe)

    def _steps(self, state, batches, hparams):
        step = functools.partial(
            edge_popup.step,
            loss=self._loss,
            recipe=self._job.recipe,
            variant=self._job.variant,
            accumulate=self._job.accumulate,
        )

        def one(state, batch):
            state, metrics = step(state, batch, hparams)
            return state, metrics["loss"]

        return jax.lax.scan(one, state, batches)

    def _loss(self, params: gpt2.Params, tokens: Array) -> Array:
        job = self._job
        return gpt2.loss(params, tokens, job.model, dtype=jnp.dtype(job.dtype), remat=job.remat)

    def _masks(self, state, hparams):
        return edge_popup.masks(state.trainable.scores, hparams.keep, self._job.variant)

    def _packed(self, state, hparams):
        return jax.tree.map(supermask.pack, self._masks(state, hparams))

    def _evaluate(self, state, masks, batches):
        params = {**state.weights, **state.trainable.learned}
        params |= {name: params[name] * mask for name, mask in masks.items()}
        return jnp.mean(jax.lax.map(lambda batch: self._loss(params, batch), batches))

    def _redraw(self, key: Key, state, scale, hparams):
        for_fresh, for_choice = jax.random.split(key)
        fresh = gpt2.init(for_fresh, self._job.model, qk_scale=scale)
        return edge_popup.redraw(for_choice, state, fresh, hparams.keep, self._job.variant)


def stack(trees: Sequence[PyTree]) -> PyTree:
    """Return one tree with a first axis over `trees`."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


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
