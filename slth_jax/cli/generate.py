"""Continue a prompt with the network in a ticket, which is all that is needed.

The random weights are generated from the ticket's seed and masked; no trained number is read.
"""

import argparse
from pathlib import Path

from slth_jax.cli import text

HELP = "continue a prompt with the network in a ticket, and nothing else"


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("ticket", help="DIR/ticket.safetensors, as `slth-jax hide` writes it")
    parser.add_argument("--prompt", default="", metavar="TEXT", help="text to continue")
    parser.add_argument("--seed", type=int, default=0, help="of the noise at a temperature above 0")
    text.add(parser)


def run(options: argparse.Namespace) -> None:
    """Generate the weights, then the text."""
    from slth_jax.cli.devices import split_cpu

    split_cpu(options.devices)
    import jax

    from slth_jax import hide, models

    opened = hide.opened(options.ticket)
    place = Path(options.ticket)
    vocab_size = opened.recipe.settings.vocab_size
    file = models.tokens.find(options.tokenizer, place, vocab_size)
    tokenizer = models.tokens.open_tokenizer(file)
    ticket = hide.of_ticket(opened)
    tokens = models.generate(
        ticket.load(),
        ticket.settings,
        tokenizer.encode(options.prompt),
        options.length,
        temperature=options.temperature,
        key=jax.random.key(options.seed, impl="threefry2x32"),
        stop=tokenizer.stop,
    )
    print(tokenizer.decode(tokens))
