"""Compare the time of a training step with masks with the times of other training steps.

    python -m experiments.benchmarks.edge_popup --rounds 9 --out experiments/benchmarks/results

In every round each step is timed once; the order of the steps rotates from round to round. The
report contains, for each step, the median of its times and the median of its time ratios. A time
ratio is the time of this library's step divided by the time of the other step in the same round.
This library's step finds the threshold of the scores by counting. The other steps are the same
program with a threshold from `jnp.sort` or from `lax.top_k`, the same program without masks in
which all weights are trained ("dense"), PyTorch with masks (one sort per layer, as in published
code), and PyTorch without masks. Then a small model is trained with eight seeds, under one vmap and
one seed after another, in JAX and in PyTorch.
"""

import argparse
import csv
import dataclasses
import functools
import io
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.language.model import Model
from slth_jax import edge_popup, models, storage, supermask
from slth_jax.types import Key

# This model has 5.3 million parameters, 5.2 million of which have a score.
LARGE = Model(
    models.make_settings(
        num_blocks=6, width=256, num_heads=4, vocab_size=2048, max_length=128, activation="relu"
    )
)
SMALL = Model(
    models.make_settings(
        num_blocks=2, width=128, num_heads=2, vocab_size=256, max_length=64, activation="relu"
    )
)
RAMANUJAN = edge_popup.Variant(scope="matrix")
KEEP, RATE, SEEDS = 0.3, 1e-3, 8
OPTIMIZER = edge_popup.Schedule(steps=1000, warmup=10).optimizer(RATE)


def by_sort(key: Key | None, scores: Array, weights: Array, keep: float) -> Array:
    """Return the mask, found by sorting |scores|; it keeps every |score| equal to the threshold."""
    size = jnp.abs(scores).reshape(-1)
    threshold = jnp.sort(size)[size.size - supermask.num_kept(size.size, keep)]
    return (size >= threshold).reshape(scores.shape)


def by_top_k(key: Key | None, scores: Array, weights: Array, keep: float) -> Array:
    """Return the mask, found by `lax.top_k`; it keeps every |score| equal to the threshold."""
    size = jnp.abs(scores).reshape(-1)
    threshold = jax.lax.top_k(size, supermask.num_kept(size.size, keep))[0][-1]
    return (size >= threshold).reshape(scores.shape)


class Runner:
    """A compiled training step; calling it makes one step and waits for the result."""

    def __init__(
        self,
        model: Model,
        *,
        dense: bool = False,
        seeds: int | None = None,
        variant: edge_popup.Variant = RAMANUJAN,
    ):
        """Compile the step for a single run; if `seeds` is given, for that many runs (vmap)."""
        key = jax.random.key(0)

        def start(seed):
            weights, trainable = model.start(jax.random.key(seed), variant)
            if dense:
                learned = {name: weights.pop(name) for name in model.shapes}
                trainable = edge_popup.Trainable({}, learned)
            return edge_popup.start(weights, trainable, OPTIMIZER)

        def step(state, tokens):
            return edge_popup.step(
                key,
                state,
                tokens,
                KEEP,
                loss=lambda params, rows: models.loss(params, rows, model.settings),
                optimizer=OPTIMIZER,
                variant=variant,
            )

        if seeds is not None:
            start = jax.vmap(start)
            step = jax.vmap(step, in_axes=(0, None))
        self._step = jax.jit(step, donate_argnums=0)
        self._state = start(jnp.arange(seeds) if seeds else 0)
        self.losses: list[float] = []

    def __call__(self, tokens: np.ndarray) -> None:
        """Make one training step on `tokens`."""
        self._state, metrics = self._step(self._state, tokens)
        self.losses.append(float(jnp.mean(jax.block_until_ready(metrics["loss"]))))


def torch_runners(model: Model) -> dict[str, Callable[[np.ndarray], Any]]:
    """Return a dict of training steps in PyTorch; it is empty if PyTorch is not installed."""
    try:
        from experiments.benchmarks import edge_popup_torch
    except ModuleNotFoundError:
        return {}
    weights = model.init(jax.random.key(0))
    return {
        "PyTorch, sort per layer": edge_popup_torch.make_step(
            model, weights, keep=KEEP, learning_rate=RATE
        ),
        "PyTorch, dense": edge_popup_torch.make_step(model, weights, keep=None, learning_rate=RATE),
    }


def paired(
    steps: dict[str, Callable[[np.ndarray], Any]], tokens: np.ndarray, rounds: int
) -> dict[str, list[tuple[float, float]]]:
    """Time the steps in turn; return each step's (wall, processor) seconds in every round."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    names = list(steps)
    for index in range(-2, rounds):
        turn = index % len(names)
        for name in names[turn:] + names[:turn]:
            wall, processor = time.perf_counter(), time.process_time()
            steps[name](tokens)
            spent = time.perf_counter() - wall, time.process_time() - processor
            if index >= 0:
                seconds[name].append(spent)
    return seconds


def table(
    seconds: dict[str, list[tuple[float, float]]], base: str, tokens: int
) -> list[dict[str, Any]]:
    """Return a dict per step, with its median times and its time ratios to the step `base`.

    In every round, the time of the step `base` is divided by the time of the step; the entries
    `ours_over_this...` summarise these ratios. If other programs ran at the same time, the ratios
    of processor times are more reliable than the ratios of wall-clock times.
    """
    rows = []
    for name, times in seconds.items():
        wall, processor = np.array(times).T
        ratios, processor_ratios = (np.array(seconds[base]) / np.array(times)).T
        rows.append(
            {
                "step": name,
                "milliseconds": 1e3 * float(np.median(wall)),
                "processor_milliseconds": 1e3 * float(np.median(processor)),
                "tokens_per_second": tokens / float(np.median(wall)),
                "ours_over_this": float(np.median(ratios)),
                "ours_over_this_lowest": float(ratios.min()),
                "ours_over_this_highest": float(ratios.max()),
                "ours_over_this_processor": float(np.median(processor_ratios)),
            }
        )
    return rows


def picture(rows: list[dict[str, Any]], title: str):
    """Plot the median time of each step as a bar chart."""
    from experiments.plots import COLORS, figure

    drawn, axes = figure(6.4, 2.8)
    names = [row["step"] for row in rows][::-1]
    times = [row["milliseconds"] for row in rows][::-1]
    colors = [COLORS[1] if name == rows[0]["step"] else COLORS[5] for name in names]
    bars = axes.barh(names, times, color=colors)
    axes.bar_label(bars, fmt="%.0f", padding=3, fontsize=8)
    axes.set_xlabel("milliseconds per training step (median)")
    axes.set_title(title, fontsize=9)
    axes.grid(False, axis="y")
    return drawn


def main() -> None:
    """Run the benchmark, print its tables and write them as JSON, CSV and PNG."""

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--rows", type=int, default=16, help="sequences of 128 tokens in a batch")
    parser.add_argument("--part", choices=("steps", "seeds", "both"), default="both")
    parser.add_argument("--out", default="experiments/benchmarks/results")
    options = parser.parse_args()
    out = storage.make_folder(options.out)
    if options.part in ("steps", "both"):
        tokens = draw_tokens(LARGE, options.rows)
        steps: dict[str, Callable[[np.ndarray], Any]] = {
            "ours, counting": Runner(LARGE),
            "ours, dense": Runner(LARGE, dense=True),
            "JAX, sort": Runner(LARGE, variant=dataclasses.replace(RAMANUJAN, masks=by_sort)),
            "JAX, top_k": Runner(LARGE, variant=dataclasses.replace(RAMANUJAN, masks=by_top_k)),
            **torch_runners(LARGE),
        }
        rows = table(paired(steps, tokens, options.rounds), "ours, counting", tokens[:, 1:].size)
        count = LARGE.num_parameters
        what = f"GPT-2, {count / 1e6:.1f} M parameters, {tokens[:, 1:].size} tokens per step"
        _write(out / "edge_popup_step", rows, what, options.rounds)
    if options.part in ("seeds", "both"):
        together = Runner(SMALL, seeds=SEEDS)
        alone = Runner(SMALL)
        tokens = draw_tokens(SMALL, 16)
        name = f"ours, {SEEDS} seeds in one vmap"
        ways: dict[str, Callable[[np.ndarray], Any]] = {
            name: together,
            f"ours, {SEEDS} seeds one after another": functools.partial(_repeated, alone),
        }
        for step_name, step in torch_runners(SMALL).items():
            several = functools.partial(_repeated, step)
            ways[f"{step_name}, {SEEDS} seeds one after another"] = several
            if "sort" in step_name:
                from experiments.benchmarks.convolutions_torch import on_one_thread

                label = f"{step_name}, one thread, {SEEDS} seeds one after another"
                ways[label] = functools.partial(on_one_thread, several)
        seconds = paired(ways, tokens, options.rounds)
        count = SMALL.num_parameters
        what = f"GPT-2, {count / 1e6:.2f} M parameters, {tokens[:, 1:].size} tokens per seed"
        rows = [
            {**row, "steps_per_second": 1e3 * SEEDS / row["milliseconds"]}
            for row in table(seconds, name, SEEDS * tokens[:, 1:].size)
        ]
        _write(out / "edge_popup_seeds", rows, what, options.rounds)


def _repeated(step: Callable[[np.ndarray], Any], tokens: np.ndarray) -> None:
    """Call `step` once per seed, one call after another."""
    for _ in range(SEEDS):
        step(tokens)


def draw_tokens(model: Model, rows: int) -> np.ndarray:
    """Return `rows` random token sequences, each one token longer than the model's context."""
    draw, shape = np.random.default_rng(0), model.settings
    return draw.integers(shape.vocab_size, size=(rows, shape.max_length + 1)).astype(np.int32)


def _write(path: Path, rows: list[dict[str, Any]], what: str, rounds: int) -> None:
    from experiments import plots

    device = jax.devices()[0].device_kind
    versions = {"jax": jax.__version__, "python": platform.python_version()}
    if any(row["step"].startswith("PyTorch") for row in rows):
        import torch

        versions["torch"] = torch.__version__
    result = {
        "what": what,
        "rounds": rounds,
        "rows": rows,
        "device": f"{device}, {os.cpu_count()} cores",
        "load_average": os.getloadavg()[0],
        "versions": versions,
    }
    print(json.dumps(result, indent=1))
    storage.write_json(path.with_suffix(".json"), result)
    lines = io.StringIO()
    writer = csv.DictWriter(lines, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    storage.write_bytes(path.with_suffix(".csv"), lines.getvalue().encode())
    plots.save(picture(rows, f"{what}, {os.cpu_count()} cores"), path.with_suffix(".png"))


if __name__ == "__main__":
    main()
