"""Experiments with slth_jax: `python -m experiments list` prints the experiments' names.

An experiment consists of a module and an entry of `registry`. The module defines a flat frozen
dataclass `Config` (its docstring explains each option), the dictionary `PRESETS` from names to
`Config`s, `run(config, out) -> summary`, and either `sweeps(config)` or `dry_run(config, on)`.
`--dry-run` calls one of these two functions to estimate the time and the memory of a run.

    paper/           figures 4, 5 and 6         language/    figures 7 and 8
    law/             least widths               benchmarks/  speed, kills, published models
    guarantees/      bounds against errors      notebooks/   tutorials, executed
    trained_target/  a trained network          pods/        batch scripts
    examples/        small programs that use the library alone

A run uses `commands` (the command line), `options` (presets and changes to them), `folder` (the
files of a run, from which an interrupted sweep continues), `measure` (statistics of trials for the
summary), `curves` (fitted curves), `plots` (figures), `claims` (comparisons of measured numbers
with the paper's numbers), `tickets` (ticket files) and `tables` (printed tables). `report` writes
one page about finished runs; `machine` describes this machine and estimates costs.
"""
