"""Prepare a model for the training loop: make its runs, their fingerprints and their results."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array

from slth_jax import checks, placement, supermask
from slth_jax.edge_popup import forms, identity
from slth_jax.edge_popup import scores as edge
from slth_jax.edge_popup.loop import Trained
from slth_jax.edge_popup.model import Arrays, Kind, Masking, is_draw, kind_of, parts_of
from slth_jax.edge_popup.program import Program, Task
from slth_jax.edge_popup.results import Fit, Fits, Setting, log_of
from slth_jax.edge_popup.runs import Runs
from slth_jax.edge_popup.scores import State, Trainable
from slth_jax.edge_popup.step import start, update
from slth_jax.edge_popup.training import Training
from slth_jax.edge_popup.variants import variant_of
from slth_jax.types import Key, PyTree

_SCORES = 1 << 20  # folded into a run's key to draw the initial scores


class Prepared:
    """A model and its training options, prepared for runs with several settings.

    Args:
      keys: typed PRNG keys, one per seed.
      params, loss: see `fit`.
      training, masking: see `fit`.
    """

    def __init__(
        self,
        keys: Sequence[Key],
        params: Any,
        loss: Callable[..., Any],
        training: Training,
        masking: Masking,
    ):
        self._keys, self._training, self._masking = keys, training, masking
        self._drawn_scores: dict[int, Arrays] = {}
        self._draw = params if is_draw(params) else None
        models = [params] if self._draw is None else [self._draw(key) for key in keys]
        kind: Kind = kind_of(models[0])
        self._kind = kind
        self._sources = [kind.split(model) for model in models]
        for leaf in jax.tree.leaves(self._sources):
            if not leaf.is_fully_addressable:
                allowed = "arrays of this process, the same ones on every process"
                raise checks.fail("params", allowed, "arrays that are spread over processes")
        forms.check_sources(self._sources)
        self.parts = parts_of(self._sources[0][0], masking)
        measure = kind.evaluate(training.evaluate, loss)
        self._task = Task(
            lambda named, *rest: kind.loss(loss, self._narrow(named), *rest),
            training.optimizer,
            variant_of(masking.variant),
            measure and (lambda named, *rest: measure(self._narrow(named), *rest)),
            training.accumulate,
        )

    def runs(self, settings: Sequence[Setting], batches: Callable[[int], PyTree]) -> Runs:
        """Return the runs that `train` takes, one per setting."""
        keeps = [setting.keep for setting in settings]
        control = jnp.array([setting.method != "edge-popup" for setting in settings])
        static = keeps[0] if all(keep == keeps[0] for keep in keeps) else None
        controls = control if bool(control.any()) else None
        flags = [None] * len(settings) if controls is None else np.asarray(control).tolist()
        batch = batches(0)
        forms.check_batch("batches(0)", batch)
        forms.check_loss(self._task.loss, self._sources[0][1], self._arguments(batch))
        for index, rows in enumerate(self._training.validation):
            forms.check_batch(f"validation[{index}]", rows)
        if self._training.validation:
            jax.eval_shape(self._task.evaluate, *self._sources[0], self._training.validation[0])
        mesh, shapes = self._mesh(len(settings), batch), None
        if mesh is not None:
            shapes = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct((len(settings), *x.shape), x.dtype),
                self._started(settings[0], flags[0]),
            )

        def start() -> State:
            return program.stacked(lambda run: self._started(settings[run], flags[run]))

        program = Program(
            self._task,
            len(settings),
            keep=static,
            shared=True,
            mesh=mesh,
            shapes=shapes,
            together=None if mesh is not None else self._together(batch),
        )
        return Runs(
            program,
            jnp.stack([self._keys[setting.seed] for setting in settings]),
            jax.tree.map(lambda *fractions: jnp.array(fractions, jnp.float32), *keeps),
            self._training.steps,
            start=start,
            batches=lambda begin, end: jax.tree.map(_one_step, batches(begin)),
            validation=self._training.validation,
            draw=None if self._draw is None else self._fresh,
            control=controls,
            stretch=1,
            names=lambda index: str(settings[index]),
        )

    def config(self, runs: Runs, settings: Sequence[Setting]) -> dict[str, Any]:
        """Return all that affects the results: numbers, and hashes of functions and arrays."""
        training, task = self._training, self._task
        arrays, model = self._sources[0]
        steps = (0, 0, training.steps - 1)
        first, again, last = (
            jax.tree.map(lambda x: x[0], runs.batches(step, step + 1)) for step in steps
        )
        if identity.of_arrays(first) != identity.of_arrays(again):
            allowed = "a function that returns the same batch whenever it gets a step"
            raise checks.fail("batches", allowed, "two different batches of step 0")
        state = self._started(settings[0], None)
        scores = state.trainable.scores
        result = {
            "steps": training.steps,
            "runs": [dataclasses.asdict(setting) for setting in settings],
            "accumulate": training.accumulate,
            "evaluate_every": training.evaluate_every,
            "masked": sorted(self.parts.masked),
            "learned": sorted(self.parts.learned),
            "key": [identity.of_arrays(key) for key in self._keys],
            "params": identity.of_arrays(self._sources),
            "loss": identity.of_gradient(task.loss, *self._arguments(first)),
            "optimizer": identity.of_function(self._update, state)
            + identity.of_arrays(state.opt_state)[:8],
            "variant": identity.of_function(
                self._factors, *(self._keys[0], state.step, scores, arrays)
            )
            + identity.of_arrays(scores)[:8],
            "redrawing": [task.variant.redraw_every, task.variant.redraw_rate],
            "batches": identity.of_arrays([first, last]),
            "validation": identity.of_arrays(list(training.validation)),
        }
        if training.validation:
            measure = identity.of_function(
                lambda: task.evaluate({**arrays}, model, training.validation[0])
            )
            result["evaluate"] = measure
        return result

    def results(self, runs: Runs, settings: Sequence[Setting], trained: Trained) -> Fits:
        """Return a `Fit` per run."""
        best = trained.best
        state = trained.state._replace(**best.moving)
        if not state.trainable.scores:  # without controls the scores are not needed any more
            scores = trained.state.trainable.scores
            state = state._replace(trainable=state.trainable._replace(scores=scores))
        fits = []

        def of_run(run: Any, bits: Arrays, state: State) -> tuple[Arrays, Arrays, PyTree]:
            masks = {
                name: supermask.unpack(bits[name][run], shape)
                for name, shape in self.parts.masked.items()
            }
            one_run = jax.tree.map(lambda x: x[run], state)
            control = None if runs.control is None else runs.control[run]
            params = self._narrow(edge.masked(one_run, masks, control))
            return masks, params, one_run.model

        for run, setting in enumerate(settings):
            masks, params, model = runs.program.alone(of_run, run, best.masks, state)
            fits.append(
                Fit(
                    setting,
                    self._kind.masks({name: masks.get(name) for name in self._kind.names}),
                    self._kind.join(params, model),
                    float(best.loss[run]),
                    int(best.step[run]),
                    log_of(trained.log, run),
                )
            )
        return Fits(fits)

    def _together(self, batch: PyTree) -> int | None:
        """Return the number of runs per vmap: 1 for convolutions on a CPU, else None (all runs)."""
        if jax.default_backend() != "cpu":
            return None
        return 1 if identity.has_convolution(self._task.loss, *self._arguments(batch)) else None

    def _arguments(self, batch: PyTree) -> tuple[PyTree, ...]:
        """Return example arguments of the loss: the first seed's arrays and `batch`."""
        arrays, model = self._sources[0]
        return (arrays, batch) if model is None else (arrays, model, batch, self._keys[0])

    def _narrow(self, named: Arrays) -> Arrays:
        """Convert arrays to the dtypes of the source; arrays in training may have wider dtypes."""
        source = self._sources[0][0]
        return {name: x.astype(source[name].dtype) for name, x in named.items()}

    def _update(self, state: State) -> PyTree:
        """Update the optimiser with an example gradient, to fingerprint the traced program."""
        sizes = lambda trainable: optax.tree.norm(trainable, squared=True)  # noqa: E731
        scores = state.trainable
        return update(self._task.optimizer, scores, state, sizes(scores), sizes)

    def _factors(self, key: Key, step: Array, scores: Arrays, arrays: Arrays) -> PyTree:
        """Return masked parameters and their derivative, to fingerprint the variant's program."""
        variant, keep = self._task.variant, jnp.float32(0.5)
        weights = {name: arrays[name] for name in scores}
        if variant.keep_at is not None:
            keep = variant.keep_at(keep, step)

        def params(scores: Arrays) -> Arrays:
            return edge.ticket(key, weights, Trainable(scores, {}), keep, variant)

        masked, pull = jax.vjp(params, scores)
        return masked, pull(masked)

    def _mesh(self, runs: int, batch: PyTree) -> Mesh | None:
        """Return the mesh; its default is all devices for several processes, and None for one."""
        if self._training.mesh is not None or jax.process_count() == 1:
            return self._training.mesh
        rows = jax.tree.leaves(batch)[0].shape[0]
        return placement.mesh_of_all(runs, rows // self._training.accumulate)

    def _started(self, setting: Setting, control: bool | None) -> State:
        """Return the state of a run before the first step."""
        arrays, model = self._source(setting.seed)
        matrices = {name: arrays[name] for name in self.parts.masked}
        scores = self._scores(setting.seed)
        learned = {name: arrays[name] for name in self.parts.learned}
        weights = {name: x for name, x in arrays.items() if name not in learned}
        if control is not None:
            # Arrays that only a control trains are nevertheless stored twice in every run of the
            # program.
            learned |= {name: arrays[name] for name in self.parts.others}
            matrices = {name: _wide(x) for name, x in matrices.items()}
            weights |= matrices
        learned = {name: _wide(x) for name, x in learned.items()}
        if control:
            weights, scores = weights | scores, matrices
        state = start(weights, Trainable(scores, learned), self._task.optimizer, model=model)
        return state._replace(opt_state=_with(state.opt_state, setting.hyperparameters))

    def _scores(self, seed: int) -> Arrays:
        """Return a seed's initial scores, which are the same for every method and fraction."""
        if seed not in self._drawn_scores:
            arrays, _ = self._source(seed)
            matrices = {name: arrays[name] for name in self.parts.masked}
            key, fan_in = jax.random.fold_in(self._keys[seed], _SCORES), self._masking.fan_in
            self._drawn_scores[seed] = edge.init_scores(
                key, matrices, self._task.variant, fan_in=fan_in
            )
        return self._drawn_scores[seed]

    def _source(self, seed: int) -> tuple[Arrays, PyTree]:
        return self._sources[min(seed, len(self._sources) - 1)]

    def _fresh(self, keys: Key) -> Arrays:
        """Draw new weights of the masked arrays with the user's function."""
        assert self._draw is not None
        drawn = [self._kind.split(self._draw(key))[0] for key in keys]
        return {name: jnp.stack([arrays[name] for arrays in drawn]) for name in self.parts.masked}


def _one_step(leaf: Any) -> Any:
    """Add a first axis of length 1, the step, to an array of a batch, which stays on its device."""
    return (leaf if isinstance(leaf, jax.Array) else np.asarray(leaf))[None]


def _wide(array: Array) -> Array:
    """Return an array that is to be trained; float16 becomes float32 (see `init_scores`)."""
    return array.astype(jnp.float32) if array.dtype == jnp.float16 else array


def _with(opt_state: PyTree, hyperparameters: Mapping[str, float]) -> PyTree:
    """Set hyperparameters in an optimiser's state; return the new state."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(opt_state)
    places = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
    for name, value in hyperparameters.items():
        place = f".hyperparams[{name!r}]"
        hits = [other for other in places if other.endswith(place)]
        if not hits:
            allowed = "names of hyperparameters in the optimiser's state (optax.inject_hyperparams)"
            raise checks.fail("sweep", allowed, repr(name))
        if any(f".hyperparams_states[{name!r}]" in other for other in places):
            allowed = "names of hyperparameters that no schedule sets at every step"
            raise checks.fail("sweep", allowed, repr(name))
        for hit in hits:
            places[hit] = jnp.asarray(value, places[hit].dtype)
    return jax.tree.unflatten(structure, list(places.values()))
