"""What the command line does: list, describe, estimate and run experiments."""

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import jax

from experiments import folder, machine, registry
from experiments import options as of
from slth_jax import checks
from slth_jax.cli.memory import peak_bytes

PAGE = "report.html"


def command(options: argparse.Namespace) -> None:
    """Do what the parsed command line says."""
    if options.name == "list":
        for name, experiment in registry.EXPERIMENTS.items():
            print(f"{name:<16}{experiment.shows}")
        return
    if options.name == "report":
        _report(options.names, options.out)
        return
    names, folders = _named(options)
    modules = [registry.load(name) for name in names]
    changes = of.split(options.options)
    if options.weights is not None:
        changes["weights"] = options.weights
    # Every configuration is looked at before the first run starts.
    configs = [
        of.configure(module.PRESETS, options.preset, changes, options.seeds) for module in modules
    ]
    for name, module, config, path in zip(names, modules, configs, folders, strict=True):
        jax.config.update("jax_enable_x64", getattr(module, "FLOAT64", False))
        if options.dry_run:
            print(_cost(name, module, config))
        else:
            _join_processes(options.distributed)
            _run(name, module, config, path, options)
    if options.name == "reproduce" and not options.dry_run and jax.process_index() == 0:
        _report(folders, os.path.join(os.path.dirname(folders[0]), PAGE))


def _report(folders: Sequence[str], page: str | None) -> None:
    """Write the page of finished runs and print its path."""
    if not folders:
        raise checks.fail("report", "followed by folders of finished runs", "none")
    registry.require("report", ("jinja2",))
    from experiments import report

    print(report.write(folders, page or PAGE))


def describe(name: str) -> Iterator[str]:
    """Yield lines on an experiment: what it shows, its presets, and its options."""
    names = {"reproduce": registry.REPRODUCE, "list": (), "report": ()}.get(name, (name,))
    for experiment in names:
        presets = registry.load(experiment).PRESETS
        yield f"\n{experiment}: {registry.EXPERIMENTS[experiment].shows}"
        yield "presets (--preset NAME; times on two CPU cores):"
        notes = registry.EXPERIMENTS[experiment].presets
        yield from (f"  {preset:<8}{notes[preset]}" for preset in presets)
        yield "options, with the values of the preset quick (--set OPTION=VALUE):"
        yield from of.describe(presets["quick"])


def _named(options: argparse.Namespace) -> tuple[tuple[str, ...], list[str]]:
    """Return the experiments that the command line names, and a folder for each."""
    if options.name != "reproduce":
        out = options.out or os.path.join("results", f"{options.name}-{options.preset}")
        return (options.name,), [out]
    names = tuple(options.names) or registry.REPRODUCE
    out = options.out or os.path.join("results", f"reproduce-{options.preset}")
    return names, [os.path.join(out, name) for name in names]


def _cost(name: str, module: ModuleType, config: Any) -> str:
    """Return what a run costs, without starting it."""
    if hasattr(module, "dry_run"):
        return module.dry_run(config)
    return f"{name}, {config.seeds} seeds a setting\n" + machine.cost(
        module.sweeps(config), config.seeds
    )


def _join_processes(distributed: str) -> None:
    """Call `jax.distributed.initialize` as asked; 'auto' goes on alone where nothing is found."""
    if distributed == "off" or jax.distributed.is_initialized():
        return
    try:
        jax.distributed.initialize()
    except ValueError:  # no cluster was detected
        if distributed == "on":
            raise


def _run(
    name: str, module: ModuleType, config: Any, path: str, options: argparse.Namespace
) -> None:
    registry.require(name)
    from experiments import tables

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
        finished = out.finished
        if finished:
            summary = out.read_summary()
        else:
            started = time.perf_counter()
            summary = {
                "experiment": name,
                "preset": options.preset,
                **module.run(config, out),
                "figures": out.captions,
                "seconds": round(time.perf_counter() - started, 3),
                "peak_memory_gib": round(peak_bytes() / 2**30, 3),
                **machine.report(),
            }
            out.write_summary(summary)
        if first:
            tables.show(name, summary, out.path, finished=finished)
