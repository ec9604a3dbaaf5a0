"""The actions of the command line: list, describe, estimate and run experiments."""

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import jax

from experiments import folder, machine, registry
from experiments import options as of
from slth_jax import checks, storage
from slth_jax.cli import outcome, progress
from slth_jax.cli.memory import peak_bytes
from slth_jax.distributed import joined

PAGE = "report.html"


def command(options: argparse.Namespace) -> None:
    """Carry out a parsed command line."""
    if options.config is not None:
        from_file(options)
    if options.name is None:
        raise checks.fail("NAME", "an experiment or 'list' (or give --config FILE)", "none")
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
    # Every configuration is checked before the first run starts.
    configs = [
        of.configure(module.PRESETS, options.preset, changes, options.seeds, options.recorded)
        for module in modules
    ]
    if options.dry_run:
        for name, module, config in zip(names, modules, configs, strict=True):
            _set_precision(module)
            print(_cost(name, module, config, options.on))
        return
    with joined(options.distributed, outcome.report):
        complete = True
        for name, module, config, path in zip(names, modules, configs, folders, strict=True):
            _set_precision(module)
            complete &= _run(name, module, config, path, options)
        if options.name == "reproduce" and complete and jax.process_index() == 0:
            _report(folders, os.path.join(os.path.dirname(folders[0]), PAGE))


def from_file(options: argparse.Namespace) -> None:
    """Set the experiment and its options to the values in the config.json of a run."""
    recorded = storage.read_json(options.config, checksum=None)
    fields = recorded if isinstance(recorded, dict) else {}
    if not isinstance(fields.get("options"), dict) or "experiment" not in fields:
        raise checks.fail("--config", "the config.json of an experiment's run", options.config)
    if options.name not in (None, recorded["experiment"]):
        raise checks.fail("NAME", f"that of --config, {recorded['experiment']!r}", options.name)
    options.name, options.recorded = recorded["experiment"], recorded["options"]


def _set_precision(module: ModuleType) -> None:
    jax.config.update("jax_enable_x64", getattr(module, "FLOAT64", False))


def _report(folders: Sequence[str], page: str | None) -> None:
    """Write the page about finished runs and print its path."""
    if not folders:
        raise checks.fail("report", "followed by folders of finished runs", "none")
    registry.require("report", ("jinja2",))
    from experiments import report

    print(report.write(folders, page or PAGE))


def describe(name: str) -> Iterator[str]:
    """Yield lines of text about an experiment: its subject, its presets and its options."""
    names = {"reproduce": registry.REPRODUCE, "list": (), "report": ()}.get(name, (name,))
    for experiment in names:
        presets = registry.load(experiment).PRESETS
        yield f"\n{experiment}: {registry.EXPERIMENTS[experiment].shows}"
        yield "presets (--preset NAME; times on two CPU cores):"
        notes = registry.EXPERIMENTS[experiment].presets
        yield from (f"  {preset:<8} {notes[preset]}" for preset in presets)
        yield "options, with the values of the preset quick (--set OPTION=VALUE):"
        yield from of.describe(presets["quick"])


def _named(options: argparse.Namespace) -> tuple[tuple[str, ...], list[str]]:
    """Return the names of the experiments that a command line runs, and a folder for each."""
    if options.name != "reproduce":
        out = options.out or os.path.join("results", f"{options.name}-{options.preset}")
        return (options.name,), [out]
    names = tuple(options.names) or registry.REPRODUCE
    out = options.out or os.path.join("results", f"reproduce-{options.preset}")
    return names, [os.path.join(out, name) for name in names]


def _cost(name: str, module: ModuleType, config: Any, on: str | None) -> str:
    """Return the estimated cost of a run without starting the run.

    Args:
      name: the experiment.
      module: its module.
      config: the configuration of the run.
      on: another machine, such as 'v5e:4x4'; None for this machine.
    """
    if hasattr(module, "dry_run"):
        return module.dry_run(config, on)
    if on is not None:
        return f"{name} on {on}\n" + machine.cost_on(on, module.sweeps(config), config.seeds)
    return f"{name}, {config.seeds} seeds per setting\n" + machine.cost(
        module.sweeps(config), config.seeds
    )


def _run(
    name: str, module: ModuleType, config: Any, path: str, options: argparse.Namespace
) -> bool:
    """Run an experiment; return whether the run is complete (all shards are finished)."""
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
        if not out.quiet:
            _log_start(name, out)
        if finished:
            summary = out.read_summary()
        else:
            started = time.perf_counter()
            try:
                results = module.run(config, out)
            except folder.Incomplete as part:
                print(part)
                return False
            summary = {
                "experiment": name,
                "preset": options.preset,
                **results,
                "figures": out.captions,
                "seconds": round(time.perf_counter() - started, 3),
                "peak_memory_gib": round(peak_bytes() / 2**30, 3),
                **machine.report(),
            }
            out.write_summary(summary)
        if first:
            tables.show(name, summary, out.path, finished=finished)
    return True


def _log_start(name: str, out: folder.RunFolder) -> None:
    """Log a run's first line: versions, devices, processes, host, the folder and its state."""
    patterns = ("**/SHA256SUMS", "**/*.safetensors")  # saved chunks
    chunks = sum(1 for pattern in patterns for _ in out.checkpoints.glob(pattern))
    state = "finished" if out.finished else f"{chunks} saved pieces" if chunks else "new"
    progress.log_start(name, machine.versions(), f"{out.path} ({state})")
