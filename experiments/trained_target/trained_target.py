"""A trained network as the target of random attention and ReLU layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import measure, options, plots, tickets
from experiments.folder import RunFolder, Sweep
from experiments.paper import errors
from experiments.paper.sources import narrow, narrow_layers, random_source
from experiments.trained_target import modular, pretrained
from experiments.trained_target.pretrained import Network, Task
from slth_jax import attention, construction, guarantee, ticket
from slth_jax.transformer import Block, Linear
from slth_jax.types import Array, Hparams, Key, PaddedAttention

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FLOAT64 = False  # the networks were trained, and are used, in float32


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of a run.

    Attributes:
      seeds: the number of random sources per setting, which have the seeds 0, 1, ...
      weights: the path of a published network (.npz); none to train a small network that adds
        modulo 23.
      attention_units: hidden units of attention per input coordinate.
      relu_units: hidden units of ReLU layers per input coordinate; about half of the units have a
        positive weight in the first layer, the rest a negative weight.
      construction: the rule that assigns hidden units to input coordinates.
      target_seed: the seed with which the small network is trained.
    """

    seeds: int = 3
    weights: str | None = None
    attention_units: tuple[int, ...] = (2, 4, 6, 8, 12, 16, 24)
    relu_units: tuple[int, ...] = (4, 6, 8, 12, 16, 24)
    construction: str = "proof"
    target_seed: int = 0

    def __post_init__(self):
        counts = ("attention_units", "relu_units")
        options.check(
            self,
            least={"target_seed": 0} | dict.fromkeys(counts, 1),
            words={"construction": construction.CONSTRUCTIONS},
        )


PRESETS = {
    "quick": Config(seeds=1, attention_units=(2, 4, 6, 8), relu_units=(4, 8, 12, 16)),
    "paper": Config(),
}


class Target(NamedTuple):
    """A trained network, its task, and the last layer's outputs at the positions of the answers."""

    network: Network
    task: Task
    rows: Array


def load(config: Config) -> Target:
    """Read the published network, or train the small network."""
    if config.weights is None:
        network = modular.train(jax.random.key(config.target_seed, impl="threefry2x32"))
    else:
        network = pretrained.load(config.weights)
    task = pretrained.task_of(network)
    return Target(network, task, pretrained.read_out(network, task, network.blocks))


def _sweeps(config: Config, target: Target) -> list[Sweep]:
    mha = max(config.attention_units)
    grids: dict[str, dict[str, tuple[int, ...]]] = {
        "attention": {"attention_units": config.attention_units}
    }
    if any(block.layers for block in target.network.blocks):
        grids["attention+relu"] = {"attention_units": (mha,), "relu_units": config.relu_units}
    return [
        Sweep(
            f"pruned, {part}",
            make_trial(target, config.construction),
            grid=grid,
            padded=tuple(grid),
            # Trials run one at a time, because a trial has 131,072 subset sums or more.
            batch=1,
            chunk=1,
            part=part,
        )
        for part, grid in grids.items()
    ]


def sweeps(config: Config) -> list[Sweep]:
    """Return the sweeps that `run` runs, so that the cost of `run` can be estimated."""
    return _sweeps(config, load(config))


def run(config: Config, out: RunFolder) -> dict[str, Any]:
    """Prune attention only, then attention and ReLU layers; score both tickets on the task."""
    target = load(config)
    x = pretrained.embed(target.network, target.task.tokens)
    max_norm = float(jnp.max(jnp.linalg.norm(x, axis=-1)))
    m = x.shape[-1]
    rows: list[dict[str, Any]] = []
    for sweep in _sweeps(config, target):
        results = out.sweep(sweep)
        first = results.rows[0]["seed"]
        largest = {f"{name}_max": max(values) for name, values in sweep.grid.items()}
        for index, row in enumerate(results.rows):
            units = row.get("relu_units", row["attention_units"])
            entry = {"part": sweep.part, "units": units, "width": m * row["attention_units"], **row}
            if row["seed"] == first:
                source, masks = _ticket_of(row, results.arrays(index), target.network, largest)
                bound = guarantee.guarantee(
                    source, masks, target.network.blocks, max_norm, num_tokens=x.shape[1]
                )
                entry |= {"bound": bound.error, "vacuous": bound.vacuous}
                entry |= _on_questions(source, masks, target, x)
                if sweep.part == "attention" and units == max(config.attention_units):
                    _save(out, entry, source, masks)
            rows.append(entry)
    out.write_rows(rows)
    return _summary(out, rows, target, max_norm)


def make_trial(target: Target, rule: str):
    """Return the trial function: draw a source, compute a ticket, and score it on the task.

    If the trial's values contain `relu_units`, the ReLU layers are pruned too. If not, the ticket
    contains the target's ReLU layers.
    """
    network, task, of_target = target
    blocks = network.blocks

    def trial(key: Key, hparams: Hparams):
        source, _ = draw(key, blocks, hparams)
        pruned = blocks if "relu_units" in hparams else without_layers(blocks)
        masks, report = construction.solve_transformer(source, pruned, construction=rule)
        ticket = construction.apply_masks(source, masks)
        if "relu_units" not in hparams:
            ticket = tuple(
                block._replace(layers=to_block.layers)
                for block, to_block in zip(ticket, blocks, strict=True)
            )
        rows = pretrained.read_out(network, task, ticket)
        error = jnp.max(jnp.linalg.norm(rows - of_target, axis=-1))
        scores = pretrained.score(network, task, rows)
        return {**scores, "error": error, "out_of_reach": report.out_of_reach}, masks

    return trial


def without_layers(blocks: Sequence[Block]) -> tuple[Block, ...]:
    """Return the blocks without their ReLU layers."""
    return tuple(block._replace(layers=()) for block in blocks)


def draw(key: Key, target: Sequence[Block], hparams: Mapping[str, Any]):
    """Return a padded source for `target`, and its widths ``(n_mha, n_fc)`` without padding."""
    m = target[0].attention.w_q.shape[1]
    n_mha, padded = (m * hparams[name] for name in ("attention_units", "attention_units_max"))
    if "relu_units" not in hparams:
        source = random_source(
            key, without_layers(target), n_mha=n_mha, n_fc=(), padded=(padded, ())
        )
        return source, (n_mha, ())
    sizes = [layer.w.shape[1] for layer in target[0].layers]
    n_fc = tuple(hparams["relu_units"] * i for i in sizes)
    of_layers = [hparams["relu_units_max"] * i for i in sizes]
    source = random_source(key, target, n_mha=n_mha, n_fc=n_fc, padded=(padded, of_layers))
    return source, (n_mha, n_fc)


def _on_questions(source: Any, masks: Any, target: Target, x: Array) -> dict[str, Any]:
    """Return the guarantees for a ticket on the task's questions, at the answers' positions.

    `bound_on` bounds the error of every output row. `relative_on` bounds the error of every row
    divided by the row's norm; a bound of 1 or more is vacuous. `certain` is the share of answers
    that are proved to be right for the ticket.
    """
    network, task, rows = target
    mask = attention.causal_mask(x.shape[1])
    guaranteed = guarantee.guarantee_on(source, masks, network.blocks, x, mask)
    at = np.asarray(task.positions)
    bound = guaranteed.rows[:, at]
    return {
        "bound_on": float(bound.max()),
        "relative_on": float(np.max(bound / guaranteed.norms[-1][:, at])),
        "certain": float(np.mean(pretrained.certain(network, task, rows, bound))),
    }


def _ticket_of(
    row: Mapping[str, Any], stored: Mapping[str, Any], network: Network, largest: Mapping[str, int]
) -> tuple[Any, Any]:
    """Draw the source of a trial again; return it and the trial's masks, without padding."""
    key = jax.random.key(row["seed"], impl=ticket.IMPL)
    drawn, (n_mha, n_fc) = draw(key, network.blocks, {**row, **largest})
    source, masks = [], []
    for b, (block, of_target) in enumerate(zip(drawn, network.blocks, strict=True)):
        named = stored[str(b)]
        mask_layers = [Linear(layer["w"]) for layer in named.get("layers", {}).values()]
        masks.append(
            Block(
                narrow(PaddedAttention(**named["attention"]), n_mha),
                narrow_layers(mask_layers, n_fc),
            )
        )
        layers = narrow_layers(block.layers, n_fc) if n_fc else of_target.layers
        source.append(Block(narrow(block.attention, n_mha), layers))
    return tuple(source), tuple(masks)


def _save(
    out: RunFolder, row: Mapping[str, Any], source: Sequence[Block], masks: Sequence[Block]
) -> None:
    """Write the ticket file of the attention layers of all blocks."""
    h, m, n = source[0].attention.w_q.shape
    tickets.save(
        out,
        f"attention-width{n}-seed{row['seed']}",
        "theory_blocks",
        {"num_blocks": len(source), "num_heads": h, "d": m, "n_k": n, "n_v": n},
        row["seed"],
        tuple(block.attention for block in masks),
        weights=tuple(block.attention for block in source),
        metadata={name: row[name] for name in ("accuracy", "error", "bound")},
    )


def _summary(
    out: RunFolder, rows: list[dict[str, Any]], target: Target, max_norm: float
) -> dict[str, Any]:
    """Return the summary: rows for each sweep and width, and the target's scores."""
    summary = measure.summarize(
        rows,
        ("part", "units", "width"),
        out_of_reach=("out_of_reach", sum),
        accuracy=("accuracy", measure.mean),
        accuracy_min=("accuracy", min),
        bound=("bound", measure.first),
        vacuous=("vacuous", measure.first),
        bound_on=("bound_on", measure.first),
        relative_on=("relative_on", measure.first),
        certain=("certain", measure.first),
    )
    network, task, of_target = target
    scores = pretrained.score(network, task, of_target)
    out.figure(picture(task.name, summary), "trained_target")
    return {
        "rows": summary,
        "task": task.name,
        "questions": int(task.answers.size),
        "target": {
            **{name: float(value) for name, value in scores.items()},
            "alpha": max_norm,
            "w_vo_norm": max(errors.merged_norms(block.attention)[1] for block in network.blocks),
        },
        "paper": {"statement": "not in the paper: a trained network as the target"},
    }


def picture(task: str, rows: list[dict[str, Any]]) -> Figure:
    """Plot the accuracy of tickets, and their measured and guaranteed errors, against the width."""
    figure, (left, right) = plots.two(7.6, 5.4)
    for index, part in enumerate(dict.fromkeys(row["part"] for row in rows)):
        of_part = [row for row in rows if row["part"] == part]
        units = [row["units"] for row in of_part]
        color = plots.COLORS[index]
        label = part.replace("+relu", " and ReLU layers") + " pruned"
        accuracy = [row["accuracy"] for row in of_part]
        left.plot(units, accuracy, "o-", markersize=4, color=color, label=label)
        plots.error_curve(right, units, of_part, f"{part}: measured", index)
        for column, marker, inputs in (("bound", "v", "all"), ("bound_on", "^", "these")):
            values = [row[column] for row in of_part]
            name = f"{part}: guaranteed, {inputs} inputs"
            right.plot(units, values, marker, color=color, markersize=4, label=name)
    left.set_ylabel("accuracy, mean over sources")
    right.set_ylabel("largest error of an output row")
    right.set_yscale("log")
    for axes in (left, right):
        axes.set_xlabel("hidden units per input coordinate")
        axes.set_xticks(sorted({row["units"] for row in rows}))
        plots.legend_below(axes)
    figure.suptitle(f"Random sources pruned to approximate a network: {task}")
    return figure
