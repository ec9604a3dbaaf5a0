"""Edge-popup: learn which weights of a frozen random network to keep (Ramanujan et al. 2020).

Every connection has a score. The forward pass keeps the connections whose scores are largest in
absolute value, and gradients pass straight through the mask to the scores. `variants` contains the
forms of edge-popup. `scores` turns scores into masks and masked parameters, and `step` makes one
optimiser step. `program` compiles the optimiser step for many runs under one vmap, on a mesh of
devices. `runs` describes the runs. `loop` trains and evaluates the runs, re-draws weights, and
resumes stopped runs. `best` stores the best evaluation of each run.

`fitting` contains `fit`, which trains any model in one call. `model` and `flax_module` convert the
model to named arrays, `forms` checks the arrays, and `prepare` makes the runs. `identity` computes
the fingerprints by which a folder of another fit is refused, and `results` contains the result
classes.
"""

from slth_jax.edge_popup.best import Best
from slth_jax.edge_popup.fitting import fit
from slth_jax.edge_popup.loop import Trained, train
from slth_jax.edge_popup.model import Masking, Stateful
from slth_jax.edge_popup.program import Program, Task
from slth_jax.edge_popup.results import Fit, Fits, Setting
from slth_jax.edge_popup.runs import Runs
from slth_jax.edge_popup.schedule import Schedule
from slth_jax.edge_popup.scores import (
    State,
    Trainable,
    init_scores,
    masks,
    redraw,
    shuffled,
    ticket,
)
from slth_jax.edge_popup.step import start, step
from slth_jax.edge_popup.training import Training
from slth_jax.edge_popup.variants import VARIANTS, Variant, kaiming_normal, kaiming_uniform

__all__ = [
    "VARIANTS",
    "Best",
    "Fit",
    "Fits",
    "Masking",
    "Program",
    "Runs",
    "Schedule",
    "Setting",
    "State",
    "Stateful",
    "Task",
    "Trainable",
    "Trained",
    "Training",
    "Variant",
    "fit",
    "init_scores",
    "kaiming_normal",
    "kaiming_uniform",
    "masks",
    "redraw",
    "shuffled",
    "start",
    "step",
    "ticket",
    "train",
]
