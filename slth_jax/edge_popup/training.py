"""The settings of training and evaluation that all runs of a fit share."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from slth_jax import checks
from slth_jax.edge_popup.loop import Progress
from slth_jax.types import PyTree


@dataclasses.dataclass(frozen=True)
class Training:
    """The settings of training and evaluation that all runs of a fit share.

    Attributes:
      steps: the number of optimiser steps of each run.
      optimizer: any optimiser of Optax, such as the paper's ``Schedule(steps).optimizer(0.05)``.
        The optimiser updates a `Trainable`, so masks and labels of Optax must be functions of a
        `Trainable`.
      sweep: a dict from the name of a hyperparameter in the optimiser's state
        (`optax.inject_hyperparams`) to its values, such as ``{"learning_rate": [0.01, 0.1]}``.
        Every combination of swept values has its own runs and its own controls.
      accumulate: the number of parts of a batch that are computed one after another.
      validation: the validation batches. The result of a run contains the masks of the evaluation
        with the least mean loss on the validation batches. Without validation batches, the
        evaluation with the least mean training loss since the previous evaluation is chosen.
      evaluate: ``evaluate(params, batch)`` returns the loss of an evaluation, or a dictionary of
        measurements that contains 'loss'; None for the training loss. For a `Stateful` model
        `evaluate` is called as ``evaluate(params, state, batch)``, and it cannot be None if there
        are validation batches. A Flax module is passed to `evaluate` after ``.eval()``.
      evaluate_every: the number of steps between evaluations; each evaluation is followed by a
        checkpoint.
      evaluate_first: whether to evaluate also before the first step, when masks are still random.
      progress: ``progress(step, steps, entry)`` is called after each evaluation. The losses in the
        log entry `entry` are lists with one value per run.
      mesh: a mesh of devices with axes 'run', 'data' and 'model'. If `mesh` is None, one process
        uses the default device, and several processes use all devices. Several processes split
        first the runs over the devices, then the rows of batches.
    """

    steps: int
    optimizer: optax.GradientTransformation
    sweep: Mapping[str, Sequence[float] | np.ndarray] = dataclasses.field(default_factory=dict)
    accumulate: int = 1
    validation: Sequence[PyTree] = ()
    evaluate: Callable[..., Any] | None = None
    evaluate_every: int = 100
    evaluate_first: bool = False
    progress: Progress | None = None
    mesh: Mesh | None = None

    def __post_init__(self):
        checks.integer("steps", self.steps, low=1)
        checks.integer("accumulate", self.accumulate, low=1)
        checks.integer("evaluate_every", self.evaluate_every, low=1)
        if not all(callable(getattr(self.optimizer, part, None)) for part in ("init", "update")):
            allowed = "an optimiser of Optax, such as optax.adam(0.01)"
            raise checks.fail("optimizer", allowed, repr(self.optimizer))
        for name, values in checks.record("sweep", self.sweep, Mapping).items():
            label = f"sweep[{name!r}]"
            checks.different(label, [checks.number(label, x) for x in listed(label, values)])
        checks.sequence("validation", self.validation)
        for name in ("evaluate", "progress"):
            if getattr(self, name) is not None:
                checks.function(name, getattr(self, name))
        if self.evaluate is not None and not self.validation:
            raise checks.fail("evaluate", "None without validation batches", self.evaluate)
        checks.record("mesh", self.mesh, Mesh | None)


def listed(name: str, values: Any) -> Sequence[Any]:
    """Return `values` as a sequence; refuse all but lists, tuples and one-dimensional arrays."""
    if isinstance(values, (np.ndarray, jax.Array)) and values.ndim == 1:
        return list(np.asarray(values))
    return checks.sequence(name, values)
