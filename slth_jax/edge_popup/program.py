"""The compiled functions of edge-popup: one run, or many under one vmap, spread over a mesh."""

import dataclasses

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from slth_jax import checks, placement, supermask
from slth_jax.edge_popup import scores as edge
from slth_jax.edge_popup.scores import Hparams, Loss, Recipe, State, Variant
from slth_jax.types import Array, PyTree


class Program:
    """Compiled at first use and never again, for one run or for many.

    With `runs` every leaf of the state has a first axis of runs, and what they differ in is traced,
    keep and learning rate among it. For a single run `hparams` are Python numbers and compiled in,
    so that `keep` is exact (a traced one is read in millionths).

    Args:
      loss: ``loss(params, batch) -> scalar``, a mean over the batch.
      recipe, variant: static.
      measure: ``measure(params, batch) -> scalar``, what an evaluation computes; None for `loss`.
      accumulate: parts of a batch that go through the model one after another.
      runs: how many; None for a single one.
      mesh: with `runs`, devices along axes 'run', 'data' and 'model'.
      shapes: with `mesh`, the shapes of the state of all runs.

    Attributes:
      shapes: of the state of all runs with their places on the mesh; None without a mesh.
      advance: ``(state, batches, hparams) -> (state, losses)``. A single run makes one step with
        one batch, losses `[1]`; many go through a stretch of steps, batches `[run, step, ...]`,
        losses `[run, step]`, and the old state's memory is taken.
      evaluate: ``(state, masks, batch) -> losses``, the same batch for all runs.
      masks, packed: ``(state, hparams) -> masks``, as booleans and as bits.
      redraw: ``(keys, state, fresh, hparams) -> state``, see `edge_popup.redraw`.
    """

    def __init__(
        self,
        loss: Loss,
        recipe: Recipe,
        variant: Variant,
        *,
        measure: Loss | None = None,
        accumulate: int = 1,
        runs: int | None = None,
        mesh: Mesh | None = None,
        shapes: PyTree = None,
    ):
        self.recipe, self.variant, self.runs = recipe, variant, runs
        self._mesh, self._loss, self._measure = mesh, loss, measure or loss
        self._accumulate = accumulate
        if mesh is not None and (runs is None or shapes is None):
            raise checks.fail("mesh", "given together with runs and shapes", "it alone")
        self.shapes, places = None, None
        if mesh is not None:
            places = placement.of(shapes, mesh, runs=True)
            self.shapes = jax.tree.map(
                lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
                *(shapes, places),
            )
        if runs is None:
            self.advance = jax.jit(self._one_step, static_argnums=2)
            self.evaluate = jax.jit(self._evaluate)
            self.masks = jax.jit(self._masks, static_argnums=1)
            self.packed = jax.jit(self._packed, static_argnums=1)
            self.redraw = jax.jit(self._redraw, static_argnums=3)
        else:
            both = None if places is None else (places, None)
            self.advance = jax.jit(jax.vmap(self._steps), donate_argnums=0, out_shardings=both)
            self.evaluate = jax.jit(jax.vmap(self._evaluate, in_axes=(0, 0, None)))
            self.masks = jax.jit(jax.vmap(self._masks))
            self.packed = jax.jit(jax.vmap(self._packed))
            self.redraw = jax.jit(jax.vmap(self._redraw), out_shardings=places)

    def place(self, state: State) -> State:
        """Return the state of all runs where it lives on the mesh."""
        if self.shapes is None:
            return state
        return jax.device_put(state, jax.tree.map(lambda leaf: leaf.sharding, self.shapes))

    def place_batches(self, batches: PyTree) -> PyTree:
        """Return NumPy batches `[run, step, row, ...]` where `advance` wants them."""
        return self._placed(batches, runs=True)

    def place_validation(self, batches: PyTree) -> PyTree:
        """Return NumPy batches `[part, row, ...]`, the same for all runs, on the mesh."""
        return self._placed(batches, runs=False)

    def _placed(self, batches: PyTree, runs: bool) -> PyTree:
        if self._mesh is None:
            return batches
        places = placement.of_batch(batches, self._mesh, runs=runs, steps=True)
        return jax.tree.map(_put, batches, places)

    def _one_step(self, state, batch, hparams):
        state, metrics = self._step(state, batch, hparams)
        return state, metrics["loss"][None]

    def _steps(self, state, batches, hparams):
        def one(state, batch):
            state, metrics = self._step(state, batch, hparams)
            return state, metrics["loss"]

        return jax.lax.scan(one, state, batches)

    def _step(self, state: State, batch: PyTree, hparams: Hparams):
        # Re-drawing happens between steps, see `redraw`.
        still = dataclasses.replace(self.variant, redraw_every=0)
        return edge.step(
            state,
            batch,
            hparams,
            loss=self._loss,
            recipe=self.recipe,
            variant=still,
            accumulate=self._accumulate,
        )

    def _masks(self, state, hparams):
        return edge.masks(state.trainable.scores, hparams.keep, self.variant)

    def _packed(self, state, hparams):
        return jax.tree.map(supermask.pack, self._masks(state, hparams))

    def _evaluate(self, state, masks, batch):
        params = {**state.weights, **state.trainable.learned}
        params |= {
            name: params[name] * mask.astype(params[name].dtype) for name, mask in masks.items()
        }
        return self._measure(params, batch)

    def _redraw(self, key, state, fresh, hparams):
        return edge.redraw(key, state, fresh, hparams.keep, self.variant)


def _put(array: np.ndarray, place: NamedSharding) -> Array:
    return jax.make_array_from_callback(array.shape, place, array.__getitem__)
