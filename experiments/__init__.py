"""Experiments with slth_jax: `python -m experiments list` names them.

An experiment is one module with `DESCRIPTION`, a flat frozen dataclass `Config`, `PRESETS` by
name, and `run(config, out) -> summary`; and one row of `registry`. They live in `theory` (figures
4, 5 and 6, a trained target). What all of them share:

- `registry`: which experiments there are.  `folder`: the folder that a run leaves behind.
- `measure`: from trials to the rows of a summary.  `fits`: curves.  `plots`: pictures.
- `tickets`: found tickets as files.  `tables`: what a run prints.
"""
