"""Experiments with slth_jax: `python -m experiments list` names them.

One module per experiment, each with `DESCRIPTION`, a flat frozen dataclass `Config`, `PRESETS`
by name, and `run(config, out) -> summary`. The modules in between:

- `registry`: which experiments there are.
- `folder`: the folder that a run leaves behind.
- `data`, `targets`, `pretrained`: what the theory's experiments are measured on.
- `measure`: from trials to the rows of a summary.  `fits`: curves.  `plots`: pictures.
"""
