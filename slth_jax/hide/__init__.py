"""A whole trained model hidden in random numbers: a seed, and masks.

`targets` gives the parts of a model as matrices (normalisation and biases folded in); `pieces` cuts
them into units of work, `solver` finds the masks of some rows on all devices, `run` makes the whole
resumable and joins it to a ticket, `file` writes and reads that as a stream, and `compare` holds
target and ticket against each other. What the random source is stands in `slth_jax.sources`.

In a notebook::

    reader = models.weights.open("stories260K.bin")
    recipe = hide.make_recipe(reader, samples=20)
    path = hide.solve(reader, recipe, "out", seed=0)
    ticket = hide.of_ticket(path)
    hide.logits(ticket, tokens)
"""

from slth_jax.hide.compare import (
    Model,
    equal_tokens,
    logits,
    measures,
    of_target,
    of_ticket,
    read_tokens,
)
from slth_jax.hide.file import Opened, opened
from slth_jax.hide.run import Unfinished, clean, identity_of, make_recipe, solve

__all__ = [
    "Model",
    "Opened",
    "Unfinished",
    "clean",
    "equal_tokens",
    "identity_of",
    "logits",
    "make_recipe",
    "measures",
    "of_target",
    "of_ticket",
    "opened",
    "read_tokens",
    "solve",
]
