"""Experiments with slth_jax: `python -m experiments list` names them.

An experiment is one module and one row of `registry`. The module holds a flat frozen dataclass
`Config` (its docstring says what each option means), `PRESETS` by name, `run(config, out) ->
summary`, and `sweeps(config)` or `dry_run(config)`, from which costs are estimated. They live in
`theory` (figures 4, 5 and 6, a trained target) and in the `language` (figures 7 and 8).

A run passes through `commands` (the command line), `options` (presets and what replaces them),
`folder` (what a run leaves behind; sweeps go on where they stopped), `measure` (from trials to the
rows of a summary), `fits` and `plots` (curves and pictures), `claims` (what came out beside the
paper's numbers), `tickets` (found tickets as files) and `tables` (what is printed); `report` makes
one page of finished runs, and `machine` says what they cost here.
"""
