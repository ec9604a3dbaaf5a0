"""Run experiments: `python -m experiments NAME --preset quick --out DIR`."""

import argparse
import os
import sys
from collections.abc import Sequence

from slth_jax.cli import devices, outcome


class _Help(argparse.Action):
    """The action of `--help`, which also prints the presets and options of a named experiment."""

    def __call__(self, parser, namespace, values, option_string=None):
        parser.print_help()
        if getattr(namespace, "name", None):
            from experiments import commands

            try:
                print("\n".join(commands.describe(namespace.name)))
            except ValueError as error:
                parser.exit(outcome.refuse(str(error)))
        parser.exit()


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    main = argparse.ArgumentParser(
        prog="python -m experiments",
        description=__doc__,
        epilog="'NAME --help' shows the presets and options of one experiment.\n\n"
        + outcome.epilog(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    main.add_argument("-h", "--help", nargs=0, action=_Help, help="show this and stop")
    main.add_argument(
        "name",
        nargs="?",
        help="an experiment; 'list' prints the names of all, 'reproduce' runs figures 4, 5 and 6 "
        "and writes a page about them, 'report' writes the page about finished runs",
    )
    main.add_argument(
        "names",
        nargs="*",
        help="with reproduce: run only these experiments; with report: the folders of the runs",
    )
    main.add_argument("--preset", default="quick", help="a named configuration (default: quick)")
    main.add_argument(
        "--config", metavar="FILE", help="repeat the run of a config.json; no NAME is needed"
    )
    main.add_argument(
        "--out",
        help="folder for the results (default: results/NAME-PRESET); with report: the file of the "
        "page",
    )
    main.add_argument(
        "--seeds", type=int, help="number of seeds; a larger number extends a finished folder"
    )
    main.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="OPTION=VALUE",
        dest="options",
        help="replace an option of the preset; may be given several times",
    )
    main.add_argument("--weights", help="trained-target: a published network as .npz")
    main.add_argument("--devices", type=int, help="simulate this many devices on a CPU")
    main.add_argument(
        "--shard",
        metavar="I/N",
        help="compute every N-th chunk, beginning with chunk I; I alone suffices if an earlier "
        "shard has recorded N in the folder",
    )
    devices.add_distributed(main)
    main.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="continue a run of the same configuration in the same folder (default)",
    )
    main.add_argument(
        "--dry-run", action="store_true", help="estimate time and memory on this machine and stop"
    )
    main.add_argument(
        "--on",
        metavar="MACHINE",
        help="with --dry-run: compile for v5e:4x4, v6e:16x16, h100:8, ..., and report whether the "
        "run fits; needs that machine's compiler (slth-jax[tpu] or [cuda12]), not the machine",
    )
    main.add_argument("--quiet", action="store_true", help="show no progress")
    main.set_defaults(recorded=None)
    return main


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return the exit status (see `cli.outcome.STATUSES`)."""
    options = parser().parse_args(arguments)
    if options.devices is not None:
        if options.devices < 1:
            return outcome.refuse(f"--devices must be an integer >= 1, got {options.devices}")
        os.environ["JAX_NUM_CPU_DEVICES"] = str(options.devices)
    if options.on is not None:
        if not options.dry_run:
            return outcome.refuse(f"--on must be given with --dry-run, got --on {options.on} alone")
        os.environ["JAX_PLATFORMS"] = "cpu"
    # JAX reads its environment when it is imported, so nothing above may import it.
    from experiments import commands

    return outcome.run(lambda: commands.command(options))


if __name__ == "__main__":
    sys.exit(main())
