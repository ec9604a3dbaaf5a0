"""Run thousands of trials, batched and sharded over devices; resume stopped sweeps bit for bit.

`runner` contains the function `run`. `run` reads its arguments with `grid` and makes a `plan`:
which trials share a program, and which are saved together (a chunk). `program` turns a trial
function into a batched, sharded program. `compute` runs the chunks one after another, and `store`
saves each chunk in the folder, together with the sweep's `config`. `results` contains the table of
all trials, and reads the arrays of a trial on demand. `ahead` compiles the programs of a sweep for
machines that are not present.
"""

from slth_jax.sweep.ahead import compile_for
from slth_jax.sweep.results import Results
from slth_jax.sweep.runner import load, run

__all__ = ["Results", "compile_for", "load", "run"]
