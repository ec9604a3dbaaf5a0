"""The settings by which the runs of a fit are trained and evaluated."""

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
    """The settings by which runs are trained and evaluated.

    Attributes:
      steps: optimiser steps of each run.
      optimizer: any optimiser of Optax, such as ``Schedule(steps).optimizer(0.05)``, the paper's.
        It updates a `Trainable`, so its masks and labels are functions of that tree.
      sweep: values of hyperparameters in the optimiser's state (`optax.inject_hyperparams`) by
        name, such as ``{"learning_rate": [0.01, 0.1]}``: there are runs for all combinations, and
        controls too.
      accumulate: the number of parts of a batch that go through the model one after another.
      validation: batches; the masks with the least mean loss on them are the result. If there are
        none, the mean training loss since the previous evaluation decides.
      evaluate: ``evaluate(params, batch)``, the loss of an evaluation, or a dictionary of
        measurements with 'loss' among them; None for the loss of the training. For a model with
        mutable state the call is ``evaluate(params, state, batch)``; a module is passed after
        ``.eval()``.
      evaluate_every: steps between evaluations, each followed by a checkpoint.
      evaluate_first: whether to begin the log with an evaluation of the first scores, that is, of
        untrained weights under random masks.
      progress: ``progress(step, steps, entry)``, called after each evaluation with its log entry,
        whose losses are lists over runs.
      mesh: devices along axes 'run', 'data' and 'model'; None for the default device or, if there
        are several processes, for all devices, split along runs first and then along rows.
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
    """Return values as a sequence: a list, a tuple, or an array of one dimension."""
    if isinstance(values, (np.ndarray, jax.Array)) and values.ndim == 1:
        return list(np.asarray(values))
    return checks.sequence(name, values)
