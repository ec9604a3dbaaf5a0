"""Edge-popup: learn which weights of a frozen random network to keep (Ramanujan et al. 2020).

Every connection has a score; the forward pass keeps the `num_kept` largest, and gradients reach the
scores straight through the mask. `scores` holds the variants and one optimiser step on named
arrays; `program` compiles it for one run or for many under one vmap, on a mesh of devices; `runs`
says what trains together; `loop` trains it, with evaluation, re-drawing and resume, `best` and
`checkpoints` being what it keeps in memory and on disk. `fitting` is all of that in one call, for
any model of the user's; `nnx` (imported by name) has scores as Flax NNX variables.
"""

from slth_jax.edge_popup.best import Best
from slth_jax.edge_popup.fitting import Fit, fit
from slth_jax.edge_popup.loop import Trained, train
from slth_jax.edge_popup.program import Program
from slth_jax.edge_popup.runs import Runs
from slth_jax.edge_popup.scores import (
    VARIANTS,
    Hparams,
    Recipe,
    State,
    Trainable,
    Variant,
    init_scores,
    masks,
    redraw,
    shuffled,
    start,
    step,
    ticket,
)

__all__ = [
    "VARIANTS",
    "Best",
    "Fit",
    "Hparams",
    "Program",
    "Recipe",
    "Runs",
    "State",
    "Trainable",
    "Trained",
    "Variant",
    "fit",
    "init_scores",
    "masks",
    "redraw",
    "shuffled",
    "start",
    "step",
    "ticket",
    "train",
]
