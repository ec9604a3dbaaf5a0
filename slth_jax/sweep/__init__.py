"""Thousands of trials, batched, sharded over devices, stopped and resumed without losing a bit.

`grid` says which trials there are, which share a program and which share a chunk; `program` makes
one trial a batched, sharded program; `store` keeps finished chunks in the folder; `results` are the
table and the arrays on demand; `hosts` is what several processes agree on; `run` ties them up.
"""

from slth_jax.sweep.results import Results
from slth_jax.sweep.runner import load, run

__all__ = ["Results", "load", "run"]
