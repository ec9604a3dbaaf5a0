"""Run thousands of trials: batched, sharded over devices, with bit-identical results after a kill.

`runner` reads its arguments with `grid` and makes a `plan`: the trials, their programs and their
chunks. `program` turns one trial into a batched, sharded program; `compute` runs the chunks one
after another; `store` saves each chunk in the folder, with the sweep's `config`; `results` has the
table of all trials and reads their arrays when asked. `ahead` compiles a sweep's programs for
machines that are not at hand.
"""

from slth_jax.sweep.ahead import compile_for
from slth_jax.sweep.results import Results
from slth_jax.sweep.runner import load, run

__all__ = ["Results", "compile_for", "load", "run"]
