"""Edge-popup: learn which weights of a frozen random network to keep (Ramanujan et al. 2020).

Every connection has a score; the forward pass keeps the `num_kept` largest, and gradients reach the
scores straight through the mask. `scores` holds the variants and one optimiser step on named
arrays; `loop` is the whole of it for any model of the user's, with evaluation, re-drawing and
resume, and `checkpoints` is what it leaves on disk.
"""

from slth_jax.edge_popup.loop import Fit, fit
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
    "Fit",
    "Hparams",
    "Recipe",
    "State",
    "Trainable",
    "Variant",
    "fit",
    "init_scores",
    "masks",
    "redraw",
    "shuffled",
    "start",
    "step",
    "ticket",
]
