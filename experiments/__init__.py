"""Experiments with slth_jax: `python -m experiments list` prints their names.

An experiment is one module and one entry of `registry`. The module defines a flat frozen dataclass
`Config` (its docstring explains each option), `PRESETS` by name, `run(config, out) -> summary`, and
`sweeps(config)` or `dry_run(config, on)`, from which time and memory are estimated.

    paper/           figures 4, 5 and 6         language/    figures 7 and 8
    law/             least widths               benchmarks/  speed, kills, published models
    guarantees/      bounds against errors      notebooks/   tutorials, executed
    trained_target/  a trained network          pods/        batch scripts
    examples/        small programs that use the library alone

A run uses `commands` (the command line), `options` (presets and changes to them), `folder` (the
files of a run, from which an interrupted sweep continues), `measure` (statistics of trials, in the
rows of a summary), `curves` and `plots` (fitted curves and pictures), `claims` (the paper's numbers
beside the measured numbers), `tickets` (tickets as files) and `tables` (printed tables). `report`
writes one page about finished runs; `machine` describes this machine and estimates costs.
"""
