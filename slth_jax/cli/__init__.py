"""The command `slth-jax`, also `python -m slth_jax`.

`command` holds the table of verbs and turns errors into one line; a verb is a file with `HELP`,
`add(parser)` and `run(options)`. Nothing here imports JAX before the arguments are parsed.
"""

from slth_jax.cli.command import main

__all__ = ["main"]
