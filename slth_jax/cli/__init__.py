"""The command `slth-jax`, also `python -m slth_jax`.

`command` lists the verbs. Each subcommand (verb), such as `hide`, is a module with `HELP`,
`add(parser)` and `run(options)`. `outcome` prints an error as one line. JAX is imported after the
arguments are parsed.
"""

from slth_jax.cli.command import main

__all__ = ["main"]
