"""The command `slth-jax`, also `python -m slth_jax`.

`command` has the table of verbs; a verb is a file with `HELP`, `add(parser)` and `run(options)`.
`outcome` turns errors into one line. JAX is imported after the arguments are parsed.
"""

from slth_jax.cli.command import main

__all__ = ["main"]
