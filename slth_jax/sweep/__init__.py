"""Run thousands of trials, batched and sharded over devices; resume with bit-identical results.

The function `run` in `runner` reads its arguments with `grid` and makes a `plan` of trials,
programs and chunks. `program` turns one trial into a batched, sharded program. `compute` runs the
chunks one after another, and `store` saves each chunk in the folder, together with the sweep's
`config`. `results` contains the table of all trials and reads their arrays when they are requested.
`ahead` compiles a sweep's programs for machines that are not present.
"""

from slth_jax.sweep.ahead import compile_for
from slth_jax.sweep.results import Results
from slth_jax.sweep.runner import load, run

__all__ = ["Results", "compile_for", "load", "run"]
