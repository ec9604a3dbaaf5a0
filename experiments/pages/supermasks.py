"""Generate the parts of docs/supermasks.md that contain numbers."""

from typing import Any

from experiments.pages.blocks import pick, read, table, wrapped


def convolutions_accuracy() -> str:
    """Return the table of accuracies of convolutional networks, and a paragraph on the runs."""
    run = read("convolutions")
    preset, rows = run["preset"], run["accuracy"]
    header = ["network", "mask", *(f"keep {keep:g}" for keep in preset["keeps"]), "dense"]
    lines = []
    for name in preset["networks"]:
        dense = pick(rows, network=name, method="dense")
        for method, words in (("edge-popup", "learned"), ("random", "random, weights trained")):
            cells = [
                _percent(pick(rows, network=name, method=method, keep=keep))
                for keep in preset["keeps"]
            ]
            last = _percent(dense) if method == "edge-popup" else ""
            lines.append([name.replace("conv", "Conv-"), words, *cells, last])
    rates = ", ".join(f"{rate:g}" for rate in preset["rates"])
    edges = min(preset["rates"]), max(preset["rates"])
    at_edge = sum(row["learning_rate"] in edges for row in rows)
    text = wrapped(
        f"The table contains test accuracies in per cent, with 95 % intervals over {preset['seeds']} seeds; "
        f"each seed has different weights. All widths are {preset['width']:g} times the paper's widths. "
        f"Training takes {preset['steps']} steps of Adam with cosine decay, on batches of {preset['rows']}. For "
        f"each cell of the table, the learning rate with the best mean validation "
        f"accuracy was chosen from {rates}. In {at_edge} of {len(rows)} cells the smallest or the "
        f"largest of these rates was chosen, so other rates may give higher accuracies. "
        f"The run took {run['seconds'] / 60:.0f} minutes on {run['device']}, with a load average "
        f"of {run['load_average']:.0f}."
    )
    return f"{table(header, lines)}\n\n{text}"


def digits_table() -> str:
    """Return the table of results of the digits example, and a paragraph on the measurement."""
    run = read("digits_table")
    words = {"edge-popup": "learned", "dense": "none", "random": "random, weights trained"}
    lines = [
        [
            words[row["method"]],
            f"{row['keep']:g}",
            _spread([100 * value for value in row["accuracy"]], 1),
            _spread(row["loss"], 2),
        ]
        for row in run["table"]
    ]
    text = wrapped(
        f"The table contains the accuracy (in per cent) and the cross-entropy on validation images, "
        f"whose writers wrote no training image. The numbers are means and standard deviations "
        f"over {run['seeds']} seeds. Each run has {run['steps']} training steps; its results come "
        f"from the evaluation with the lowest cross-entropy. The learning rate of the optimiser, "
        f"Lion, is 0.001 for all runs and was not tuned. All {run['seeds'] * len(run['table'])} runs took {run['seconds']:.0f} s on "
        f"{run['device']} ({run['date']}; the load average was {run['load_average']:.1f} at the start)."
    )
    header = ["mask", "keep", "accuracy", "cross-entropy"]
    return f"{table(header, lines)}\n\n{text}"


def convolutions_speed() -> str:
    """Return the table of training steps per second, for a single run and for several runs."""
    run = read("convolutions")
    rows = run["speed"]
    names = list(dict.fromkeys(row["step"] for row in rows))
    cases = list(dict.fromkeys((row["network"], row["images"]) for row in rows))
    header = [
        "steps per second",
        *(f"{name.replace('conv', 'Conv-')}, {size} x {size}" for name, size in cases),
    ]
    measured = {(row["network"], row["images"], row["step"]): _speed(row) for row in rows}
    lines = [[step, *(measured.get((*case, step), "") for case in cases)] for step in names]
    return table(header, lines)


def edge_popup_seeds() -> str:
    """Return the table of speeds of eight runs of a small GPT-2, trained together or in sequence."""
    run = read("edge_popup_seeds")
    lines = [
        [row["step"], f"{row['steps_per_second']:.1f}", f"{row['ours_over_this']:.2f}"]
        for row in run["rows"]
    ]
    header = [
        "program",
        "steps per second, over all runs",
        "time of the first program / this program",
    ]
    return table(header, lines)


def _percent(row: dict[str, Any]) -> str:
    return f"{100 * row['accuracy']:.1f} ± {100 * row['half']:.1f}"


def _spread(values: list[float], digits: int) -> str:
    mean, sd = values
    return f"{mean:.{digits}f} ± {sd:.{digits}f}"


def _speed(row: dict[str, Any]) -> str:
    return f"{row['steps_per_second']:.3g} ({row['ours_over_this']:.2f})"
