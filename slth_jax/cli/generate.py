"""Continue a prompt with the network in a ticket.

The random weights are generated from the ticket's seed, compared with the ticket's fingerprint, and
masked; no trained number is read.
"""

import argparse

from slth_jax.cli import outcome, text

HELP = "continue a prompt with the network in a ticket, and nothing else"


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("ticket", help="DIR/ticket.safetensors, as `slth-jax hide` writes it")
    parser.add_argument("--prompt", default="", metavar="TEXT", help="text to continue")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the noise at a temperature above 0"
    )
    text.add(parser)


def run(options: argparse.Namespace) -> None:
    """Generate the ticket's weights, then print the continuation of the prompt."""
    from slth_jax.cli.devices import split_cpu

    split_cpu(options.devices)
    from slth_jax import hide

    opened = hide.opened(options.ticket)
    writer = text.Writer(options, options.ticket, opened.spec.settings)
    _, words = writer.write(hide.of_ticket(opened))
    outcome.show(words)
