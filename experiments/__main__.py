"""Run experiments from the command line: `python -m experiments NAME --preset quick --out DIR`."""

import argparse
import datetime
import os
import platform
import sys
import time
from collections.abc import Sequence
from typing import Any


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    main = argparse.ArgumentParser(prog="python -m experiments", description=__doc__)
    main.add_argument(
        "name",
        help="an experiment; 'list' for their names, 'reproduce' for figures 4, 5 and 6",
    )
    main.add_argument("names", nargs="*", help="with reproduce: these experiments only")
    main.add_argument("--preset", default="quick", help="a named configuration (default: quick)")
    main.add_argument("--out", help="folder for the results (default: results/NAME-PRESET)")
    main.add_argument("--seeds", type=int, help="number of seeds")
    main.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="OPTION=VALUE",
        dest="options",
        help="replace an option of the preset; may be given more than once",
    )
    main.add_argument("--weights", help="trained-target: a published network as .npz")
    main.add_argument("--devices", type=int, help="simulate this many devices on a CPU")
    main.add_argument("--shard", help="i/n: compute every n-th chunk from the i-th on")
    main.add_argument(
        "--distributed",
        choices=("auto", "on", "off"),
        default="off",
        help="join the processes of a pod (jax.distributed)",
    )
    main.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="continue a run of the same configuration in the same folder (default)",
    )
    main.add_argument("--dry-run", action="store_true", help="print the cost and stop")
    main.add_argument("--quiet", action="store_true", help="no progress bar")
    return main


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; return the exit status."""
    options = parser().parse_args(arguments)
    if options.devices is not None:
        if options.devices < 1:
            return _refuse(f"--devices must be an integer >= 1, got {options.devices}")
        os.environ["JAX_NUM_CPU_DEVICES"] = str(options.devices)
    # JAX reads its environment when it is imported, so nothing above may import it.
    from experiments.folder import Incomplete
    from slth_jax.storage import CheckpointError

    try:
        return _command(options)
    except (ValueError, CheckpointError, ModuleNotFoundError) as error:
        if os.environ.get("SLTH_TRACEBACK"):
            raise
        return _refuse(str(error).splitlines()[0])
    except Incomplete as part:
        print(part)
        return 0
    except KeyboardInterrupt:
        return _refuse("interrupted: the same command continues", 130)


def _refuse(message: str, status: int = 2) -> int:
    print(f"error: {message}", file=sys.stderr)
    return status


def _command(options: argparse.Namespace) -> int:
    from experiments import registry

    if options.name == "list":
        for name in registry.EXPERIMENTS:
            module = registry.load(name)
            print(f"{name:<16}{module.DESCRIPTION}  [{', '.join(module.PRESETS)}]")
        return 0
    names = (options.name,)
    if options.name == "reproduce":
        names = tuple(options.names) or registry.REPRODUCE
        out = options.out or os.path.join("results", f"reproduce-{options.preset}")
        folders = [os.path.join(out, name) for name in names]
    else:
        folders = [options.out or os.path.join("results", f"{options.name}-{options.preset}")]
    modules = [registry.load(name) for name in names]
    changes = registry.parse_options(options.options)
    if options.weights is not None:
        changes["weights"] = options.weights
    # Every configuration is looked at before the first run starts.
    configs = [
        registry.configure(module, options.preset, changes, options.seeds) for module in modules
    ]
    for name, module, config, folder in zip(names, modules, configs, folders, strict=True):
        if options.dry_run:
            print(_dry_run(name, module, config))
        else:
            _run(name, module, config, folder, options)
    return 0


def _dry_run(name: str, module: Any, config: Any) -> str:
    if hasattr(module, "dry_run"):
        return module.dry_run(config)
    return f"{name}: {config}"


def _join_processes(distributed: str) -> None:
    """Call `jax.distributed.initialize` as asked; 'auto' goes on alone where nothing is found."""
    import jax

    if distributed == "off" or jax.distributed.is_initialized():
        return
    try:
        jax.distributed.initialize()
    except ValueError:  # no cluster was detected
        if distributed == "on":
            raise


def _run(name: str, module: Any, config: Any, path: str, options: argparse.Namespace) -> None:
    import jax

    from experiments import folder, tables
    from slth_jax import __version__

    jax.config.update("jax_enable_x64", getattr(module, "FLOAT64", False))
    _join_processes(options.distributed)
    first = jax.process_index() == 0
    with folder.open(
        path,
        name,
        config,
        resume=options.resume,
        shard=options.shard,
        quiet=options.quiet or not first,
        writes=first,
    ) as out:
        if out.finished:
            summary = out.read_summary()
        else:
            started = time.perf_counter()
            summary = {
                "experiment": name,
                "preset": options.preset,
                **module.run(config, out),
                "seconds": round(time.perf_counter() - started, 3),
                "date": datetime.date.today().isoformat(),
                "versions": {
                    "slth_jax": __version__,
                    "jax": jax.__version__,
                    "python": platform.python_version(),
                },
                "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}, "
                f"{os.cpu_count()} CPU cores",
            }
            out.write_summary(summary)
        if first:
            tables.show(name, summary, out.path)


if __name__ == "__main__":
    sys.exit(main())
