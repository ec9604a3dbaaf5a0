"""Hide a whole trained model in a random network; the ticket stores a seed and masks.

`targets` returns the parts of a model as matrices; gains, shifts and biases are folded into these
matrices. `pieces` cuts the parts into groups of rows. `run` finds the masks of each group, resumes
a stopped run and writes the ticket. `estimate` predicts the cost of a run. `model` reads a target
or a ticket block by block, `compare` compares a target with its ticket, and `export` writes a
ticket's network for `transformers`. The random network and the search for its masks are in
`slth_jax.factored`.

In a notebook::

    reader = models.weights.open("stories260K.bin")
    spec = hide.make_spec(reader, samples=20)
    path = hide.solve(reader, spec, "out", seed=0)
    ticket = hide.of_ticket(path)
    hide.logits(ticket, tokens)
"""

from slth_jax.hide.compare import embeddings, equal_tokens, logits, measures, read_tokens
from slth_jax.hide.estimate import Ahead, Estimate, compile_for, estimate
from slth_jax.hide.export import to_huggingface
from slth_jax.hide.model import Model, Opened, of_target, of_ticket, opened
from slth_jax.hide.run import Unfinished, clean, identity_of, make_spec, solve

__all__ = [
    "Ahead",
    "Estimate",
    "Model",
    "Opened",
    "Unfinished",
    "clean",
    "compile_for",
    "embeddings",
    "equal_tokens",
    "estimate",
    "identity_of",
    "logits",
    "make_spec",
    "measures",
    "of_target",
    "of_ticket",
    "opened",
    "read_tokens",
    "solve",
    "to_huggingface",
]
