"""The compiled functions of edge-popup: many runs under one vmap, spread over a mesh."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array

from slth_jax import checks, placement, supermask
from slth_jax.edge_popup import scores as edge
from slth_jax.edge_popup.scores import Keep, State
from slth_jax.edge_popup.step import Loss, step
from slth_jax.edge_popup.variants import Variant
from slth_jax.types import ArrayLike, Key, PyTree

_STEP = 1 << 23  # folded into a run's key to make the keys of the run's steps
# Measurements must not have these names, which other columns of logs and tables have.
_COLUMNS = ("step", "steps_per_second", "validation", "method", "keep", "seed", "count")


@dataclasses.dataclass(frozen=True)
class Task:
    """The functions and constants that all runs of a program share.

    Attributes:
      loss: ``loss(params, batch) -> scalar``, a mean over the batch; for a model with mutable state
        ``loss(params, state, batch, key) -> (scalar, state)``.
      optimizer: any optimiser of Optax.
      variant: the form of edge-popup.
      measure: the evaluation function, ``measure(params, batch)``, or ``measure(params, state,
        batch)`` for a model with mutable state. `measure` returns a loss, or a dictionary of
        scalars that contains 'loss'. If `measure` is None, the loss is evaluated, which is allowed
        only if the model has no mutable state.
      accumulate: the number of parts into which a batch is split; the parts are computed one after
        another.
    """

    loss: Loss
    optimizer: optax.GradientTransformation
    variant: Variant
    measure: Callable[..., Any] | None = None
    accumulate: int = 1

    def evaluate(self, params: PyTree, model: PyTree, batch: PyTree) -> dict[str, Array]:
        """Return the measurements of an evaluation as a dict from name to value."""
        if model is None:
            value = (self.measure or self.loss)(params, batch)
        elif self.measure is None:
            raise checks.fail("evaluate", "a function for a model with mutable state", None)
        else:
            value = self.measure(params, model, batch)
        measured = value if isinstance(value, dict) else {"loss": value}
        if "loss" not in measured:
            raise checks.fail("evaluate", "a function whose dictionary has 'loss'", [*measured])
        return {name: _scalar(name, x) for name, x in measured.items()}


class Program:
    """The compiled functions that train and evaluate many runs.

    Each function is compiled once, at first use. The first axis of every array in the state is the
    run.

    Args:
      task: the functions and constants that the runs share.
      runs: the number of runs.
      keep: the fraction that all runs keep (a Python number or a dictionary of numbers), an exact
        constant in the program. If runs keep different fractions, `keep` is None, and the fractions
        are traced and rounded to millionths.
      shared: whether all runs see the same batches `[step, row, ...]`; if not, batches are
        `[run, step, row, ...]`.
      mesh: a mesh of devices with axes 'run', 'data' and 'model'; None for a single device.
      shapes: the shapes of the state of all runs, if `mesh` is given.
      together: the number of runs in one vmap; None for all runs.

    Attributes:
      shapes: shapes and shardings of the state of all runs; None without a mesh.
      advance: ``(keys, state, batches, keep, control) -> (state, metrics)`` makes several steps,
        one per batch; metrics have the shape `[run, step]`. The memory of the input state is
        reused.
      evaluate: ``(state, masks, batch, control) -> measurements`` evaluates all runs on one batch.
      masks, packed: ``(keys, state, keep, control) -> masks`` return the masks, `masks` as booleans
        and `packed` as bits.
      redraw: ``(keys, state, fresh, keep, control) -> state``, see `edge_popup.redraw`.
    """

    def __init__(
        self,
        task: Task,
        runs: int,
        *,
        keep: Keep | None = None,
        shared: bool = False,
        mesh: Mesh | None = None,
        shapes: PyTree = None,
        together: int | None = None,
    ):
        if together is not None and (mesh is not None or runs % together):
            allowed = f"a divisor of {runs} runs, without a mesh"
            raise checks.fail("together", allowed, together)
        self.task, self.runs = task, runs
        self._keep, self._shared, self._mesh, self._together = keep, shared, mesh, together
        if (mesh is None) != (shapes is None):
            raise checks.fail("mesh", "given together with shapes", "one of them alone")
        self.shapes = None if mesh is None else self.like(shapes)
        places = whole = by_run = both = None
        if mesh is not None:
            places = placement.of(shapes, mesh, runs=True)
            whole = NamedSharding(mesh, jax.P())  # numbers that every process reads
            by_run = placement.of(jax.ShapeDtypeStruct((runs,), np.float32), mesh, runs=True)
            both = places, whole
        batch_axis = None if shared else 0
        advance, evaluate = (0, 0, batch_axis, 0, 0), (0, 0, None, 0)
        self.advance = self._lifted(self._steps, advance, donate_argnums=1, out_shardings=both)
        self.evaluate = self._lifted(self._evaluate, evaluate, out_shardings=whole)
        self.masks = jax.jit(jax.vmap(self._masks))
        self.packed = jax.jit(jax.vmap(self._packed), out_shardings=by_run)
        self.redraw = jax.jit(jax.vmap(self._redraw), out_shardings=places)

    @property
    def processes(self) -> int:
        """The number of processes whose devices the program runs on."""
        if self._mesh is None:
            return 1
        return len({device.process_index for device in self._mesh.devices.flat})

    def stacked(self, start: Callable[[int], State]) -> State:
        """Call ``start(run)`` for each run; return the stacked states, placed on the mesh."""
        if self.shapes is None:
            states = [start(run) for run in range(self.runs)]
            return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        return placement.stacked(start, self.shapes)

    def place(self, tree: PyTree) -> PyTree:
        """Place arrays `[run, ...]`, equal on all processes, on the mesh."""
        if self._mesh is None:
            return tree
        return placement.put(tree, placement.of(tree, self._mesh, runs=True))

    def like(self, shapes: PyTree) -> PyTree:
        """Return shapes with their shardings on the mesh; without a mesh, zeros of these shapes."""
        if self._mesh is None:
            return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
        return jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            *(shapes, placement.of(shapes, self._mesh, runs=True)),
        )

    def alone(self, function: Callable[..., PyTree], run: int, *trees: PyTree) -> PyTree:
        """Return ``function(run, *trees)`` for one run; the result has no axis of runs.

        Every process gets whole arrays, unless the mesh splits them along 'model'.
        """
        if self._mesh is None:
            return jax.jit(function)(run, *trees)
        # The run's number is a constant, so that XLA does not gather the other runs.
        of_run = functools.partial(function, run)
        places = placement.of(jax.eval_shape(of_run, *trees), self._mesh)
        return placement.of_this_process(jax.jit(of_run, out_shardings=places)(*trees))

    def place_batches(self, batches: PyTree) -> PyTree:
        """Place NumPy batches on the mesh in the form that `advance` takes."""
        return self._placed(batches, runs=not self._shared, steps=True)

    def trace(self, keys: PyTree, batches: PyTree) -> Any:
        """Trace `advance` on a mesh, given only the shapes of keys and batches; compute nothing.

        The devices of the mesh need not be present, see `machines.compile_for`.
        """
        if self._mesh is None:
            raise checks.fail("mesh", "given, to trace a program for it", None)
        places = placement.of_batch(batches, self._mesh, runs=not self._shared, steps=True)
        rows = jax.tree.map(
            lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), batches, places
        )
        keep = jax.ShapeDtypeStruct((self.runs,), np.float32)
        advance: Any = self.advance
        return advance.trace(self.like(keys), self.shapes, rows, self.like(keep), None)

    def place_validation(self, batches: PyTree) -> PyTree:
        """Place on the mesh one NumPy validation batch, which is the same for all runs.

        The arrays are `[row, ...]` if all runs share their training batches, else `[part, row,
        ...]`.
        """
        return self._placed(batches, runs=False, steps=not self._shared)

    def _placed(self, batches: PyTree, runs: bool, steps: bool) -> PyTree:
        if self._mesh is None:
            return batches
        places = placement.of_batch(batches, self._mesh, runs=runs, steps=steps)
        return placement.put(batches, places)

    def _lifted(
        self, function: Callable, axes: tuple[int | None, ...], **options: Any
    ) -> Callable[..., Any]:
        """Compile a function of one run into a function of all runs, `together` runs per vmap."""
        compiled = jax.jit(jax.vmap(function, in_axes=axes), **options)
        size = self.runs if self._together is None else self._together
        if size == self.runs:
            return compiled
        parted = [index for index, axis in enumerate(axes) if axis == 0]

        @jax.jit
        def take(leaves: PyTree, start: ArrayLike) -> PyTree:
            cut = functools.partial(
                jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=size
            )
            return jax.tree.map(cut, leaves)

        @jax.jit
        def empty(part: PyTree) -> PyTree:
            return jax.tree.map(lambda x: jnp.zeros((self.runs, *x.shape[1:]), x.dtype), part)

        @functools.partial(jax.jit, donate_argnums=0)
        def put(leaves: PyTree, part: PyTree, start: ArrayLike) -> PyTree:
            write = functools.partial(
                jax.lax.dynamic_update_slice_in_dim, start_index=start, axis=0
            )
            return jax.tree.map(write, leaves, part)

        def call(*args: Any) -> Any:
            results = None
            for start in range(0, self.runs, size):
                part = take([args[index] for index in parted], start)
                of_part = dict(zip(parted, part, strict=True))
                result = compiled(*(of_part.get(i, arg) for i, arg in enumerate(args)))
                results = put(empty(result) if results is None else results, result, start)
            return results

        return call

    def _steps(self, key, state, batches, keep, control):
        # Weights are re-drawn between steps, see `redraw`.
        variant = dataclasses.replace(self.task.variant, redraw_every=0)

        def advance(state, batch):
            return step(
                _step_key(key, state),
                state,
                batch,
                self._fraction(keep),
                loss=self.task.loss,
                optimizer=self.task.optimizer,
                variant=variant,
                accumulate=self.task.accumulate,
                control=control,
            )

        if self._together is None:
            return jax.lax.scan(advance, state, batches)
        # The groups are not a loop: a CPU computes convolutions inside a loop 20 times slower.
        metrics = []
        for index in range(jax.tree.leaves(batches)[0].shape[0]):
            state, measured = advance(state, jax.tree.map(lambda x, i=index: x[i], batches))
            metrics.append(measured)
        return state, jax.tree.map(lambda *leaves: jnp.stack(leaves), *metrics)

    def _masks(self, key, state, keep, control):
        variant = self.task.variant
        return edge.kept(_step_key(key, state), state, self._fraction(keep), variant, control)

    def _packed(self, key, state, keep, control):
        return jax.tree.map(supermask.pack, self._masks(key, state, keep, control))

    def _evaluate(self, state, masks, batch, control):
        return self.task.evaluate(edge.masked(state, masks, control), state.model, batch)

    def _redraw(self, key, state, fresh, keep, control):
        return edge.redraw(key, state, fresh, self._fraction(keep), self.task.variant, control)

    def _fraction(self, keep):
        return keep if self._keep is None else self._keep


def _scalar(name: str, value: Any) -> Array:
    """Return a measurement as an array without axes."""
    if name in _COLUMNS:
        raise checks.fail("names of evaluate's measurements", f"none of {_COLUMNS}", repr(name))
    number = isinstance(value, (int, float, np.number, np.ndarray, jax.Array))
    if number and jnp.shape(value) == ():
        return jnp.asarray(value)
    raise checks.fail(f"evaluate's measurement {name!r}", "a number", _form(value))


def _form(value: Any) -> str:
    """Return a text: an array's dtype and shape, or the representation of any other value."""
    array = hasattr(value, "dtype")
    return f"{value.dtype} of shape {value.shape}" if array else repr(value)


def _step_key(key: Key, state: State) -> Key:
    return jax.random.fold_in(jax.random.fold_in(key, _STEP), state.step)
