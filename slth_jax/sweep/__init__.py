"""Thousands of trials, batched, sharded over devices, stopped and resumed without losing a bit.

`runner` reads its arguments with `grid` and makes a `plan`: which trials there are, which share a
program and which share a chunk. `program` makes one trial a batched, sharded program; `compute`
runs the chunks one after another; `store` keeps each in the folder, with a `config` that tells one
sweep from another; `results` are the table and the arrays on demand. `hosts` is what several
processes agree on.
"""

from slth_jax.sweep.results import Results
from slth_jax.sweep.runner import load, run

__all__ = ["Results", "load", "run"]
