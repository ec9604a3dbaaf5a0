"""Strong lottery tickets: subnetworks of random networks, as files."""

import argparse
from collections.abc import Sequence

from slth_jax.cli import embed, generate, hide, outcome, tickets

# Maps the name of each verb to its module, which has `HELP`, `add(parser)` and `run(options)`. A
# verb imports JAX only in `run`, so that it can first set environment variables for JAX.
VERBS = {"hide": hide, "generate": generate, "embed": embed, "ticket": tickets}


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line with all subcommands."""
    top = argparse.ArgumentParser(
        prog="slth-jax",
        description=__doc__,
        epilog="'slth-jax VERB --help' explains a verb. Experiments: 'python -m experiments "
        f"list'.\n\n{outcome.epilog()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="store_true", help="print the version and stop")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", title="verbs")
    for name, module in VERBS.items():
        verb = verbs.add_parser(name, help=module.HELP, description=module.__doc__)
        module.add(verb)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; return the exit status (see `outcome.STATUSES`)."""
    top = parser()
    options = top.parse_args(arguments)
    if options.version:
        from slth_jax import __version__

        print(f"slth-jax {__version__}")
        return 0
    if options.verb is None:
        top.print_help()
        return 0
    return outcome.run(lambda: VERBS[options.verb].run(options))
