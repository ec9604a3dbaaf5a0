"""Subjects: the folders of a sweep, a fit and a finished experiment, and a config.json."""

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments.fuzz import mutations
from experiments.fuzz.subject import Subject
from slth_jax import edge_popup, sweep

KEY = jax.random.key(0, impl="threefry2x32")


def _trial(key, hparams):
    x = jax.random.normal(key, (3,)) * hparams["scale"]
    return {"error": jnp.sum(x**2)}, {"mask": x > 0}


def _sweep(folder: Path) -> Any:
    grid = {"scale": [1.0, 2.0]}
    return sweep.run(_trial, seeds=3, grid=grid, out=folder / "sweep", chunk=2)


def _read_sweep(folder: Path) -> Any:
    results = sweep.load(folder / "sweep")
    again = _sweep(folder)
    rows = [results.row(index) for index in range(len(results))]
    arrays = [results.arrays(index) for index in range(len(results))]
    return rows, arrays, [again.row(index) for index in range(len(again))]


def _loss(params, batch):
    return jnp.mean((batch @ params["w"] - jnp.sum(batch, axis=1, keepdims=True)) ** 2)


def _batches(step):
    return jax.random.normal(jax.random.fold_in(KEY, step), (8, 4))


def _fit(folder: Path, steps: int = 4) -> Any:
    training = edge_popup.Training(
        steps=steps, optimizer=edge_popup.Schedule(steps=4).optimizer(0.05), evaluate_every=2
    )
    params = {"w": jax.random.normal(KEY, (4, 1))}
    return edge_popup.fit(
        KEY, params, _loss, _batches, keep=0.5, training=training, out=folder / "fit"
    )


def _read_fit(folder: Path) -> Any:
    [fit] = _fit(folder)
    return fit.masks


def _write_experiment(folder: Path) -> None:
    from experiments.__main__ import main

    options = ["--set", "widths=8", "--set", "targets=2", "--seeds", "2", "--quiet"]
    if main(["hidden-dim", "--preset", "quick", "--out", str(folder / "run"), *options]):
        raise RuntimeError("the experiment failed")


def _write_config(folder: Path) -> None:
    """Write a config.json of figure 4 without its checksum, as if a user had edited the file."""
    from experiments.paper import hidden_dim

    config = dataclasses.asdict(hidden_dim.PRESETS["quick"])
    recorded = {"experiment": "hidden-dim", "options": config}
    (folder / "config.json").write_text(json.dumps(recorded))


def _change_config(rng: random.Random, folder: Path) -> None:
    file = folder / "config.json"
    file.write_bytes(mutations.json_text(rng, json.loads(file.read_text())))


def _read_config(folder: Path) -> Any:
    """Read config.json as the option `--config FILE` does before a run."""
    from experiments import commands, options, registry
    from experiments.__main__ import parser

    given = parser().parse_args(["--config", str(folder / "config.json")])
    commands.from_file(given)
    presets = registry.load(given.name).PRESETS
    return options.configure(presets, given.preset, {}, None, given.recorded)


def _read_report(folder: Path) -> Any:
    from experiments import report

    report.write([folder / "run"], folder / "page.html")
    return None


SUBJECTS: tuple[Subject, ...] = (
    Subject("sweep folder", _sweep, mutations.change_folder, _read_sweep),
    Subject("fit folder", _fit, mutations.change_folder, _read_fit),
    Subject("config of a run", _write_config, _change_config, _read_config, sealed=False),
    Subject("report", _write_experiment, mutations.change_folder, _read_report, sealed=False),
)  # fmt: skip
