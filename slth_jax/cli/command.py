"""Strong lottery tickets: subnetworks of random networks, as files."""

import argparse
import os
import sys
from collections.abc import Sequence

from slth_jax.cli import generate, hide, tickets

# Verbs by name: modules with `HELP`, `add(parser)` and `run(options)`. They import JAX in `run`
# only, so that a verb may set what JAX reads when it is imported.
VERBS = {"hide": hide, "generate": generate, "ticket": tickets}


def parser() -> argparse.ArgumentParser:
    """Return the parser of all verbs."""
    top = argparse.ArgumentParser(
        prog="slth-jax",
        description=__doc__,
        epilog="'slth-jax VERB --help' says more. Experiments: 'python -m experiments list'.",
    )
    top.add_argument("--version", action="store_true", help="print the version and stop")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", title="verbs")
    for name, module in VERBS.items():
        verb = verbs.add_parser(name, help=module.HELP, description=module.__doc__)
        module.add(verb)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; return the exit status: 2 after an error, told in one line."""
    top = parser()
    options = top.parse_args(arguments)
    if options.version:
        from slth_jax import __version__

        print(f"slth-jax {__version__}")
        return 0
    if options.verb is None:
        top.print_help()
        return 0
    try:
        VERBS[options.verb].run(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _refuse("interrupted: the same command continues", 130)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        if os.environ.get("SLTH_TRACEBACK") or not _expected(error):
            raise
        return _refuse((str(error).splitlines() or [type(error).__name__])[0])
    return 0


def _expected(error: Exception) -> bool:
    """Return whether an error is one of bad input rather than of the program."""
    from slth_jax.storage import CheckpointError

    return isinstance(error, (ValueError, CheckpointError, ModuleNotFoundError))


def _refuse(message: str, status: int = 2) -> int:
    print(f"error: {message}", file=sys.stderr)
    return status
