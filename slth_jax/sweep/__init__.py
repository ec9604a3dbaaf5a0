"""Thousands of trials: batched, sharded over devices, resumed after a kill to the same bits.

`runner` reads its arguments with `grid` and makes a `plan`: the trials, their programs and their
chunks. `program` turns one trial into a batched, sharded program; `compute` runs the chunks one
after another; `store` keeps each in the folder, with the sweep's `config`; `results` are the table
and the arrays on demand. `ahead` compiles a sweep's programs for machines that are not at hand.
"""

from slth_jax.sweep.ahead import compile_for
from slth_jax.sweep.results import Results
from slth_jax.sweep.runner import load, run

__all__ = ["Results", "compile_for", "load", "run"]
