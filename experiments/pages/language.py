"""Generate the tables that compare trained models with tickets at their best learning rates."""

from typing import Any

from experiments.pages.blocks import g, interval, pick, pm, read, table, wrapped

NAMES = {"dense": "trained", "ticket": "ticket", "scaled": "scaled ticket"}


def _width(row: dict[str, Any]) -> str:
    return f"{32 * row['width_multiplier']:g}"


def language_tuned() -> str:
    """Return the table of losses of trained models and tickets at their best learning rates."""
    run = read("language_tuned")
    rows = []
    for width in sorted({row["width_multiplier"] for row in run["rows"]}):
        cells = []
        for method in NAMES:
            row = pick(run["rows"], width_multiplier=width, method=method)
            cells.append(f"{row['mean']:.3f} ({g(row['learning_rate'])})")
        for reference in ("ticket", "dense"):
            pair = pick(run["paired"], width_multiplier=width, method="scaled", reference=reference)
            cells.append(f"{pair['difference']:.3f} {interval(pair['low'], pair['high'], 3)}")
        rows.append((f"{32 * width:g}", *cells))
    names = (
        "width", "trained (rate)", "ticket (rate)", "scaled ticket (rate)", "scaled - ticket",
        "scaled - trained",
    )  # fmt: skip
    seeds, minutes = run["rows"][0]["count"], run["seconds"] / 60
    tried = ", ".join(g(rate) for rate in sorted({row["learning_rate"] for row in run["rates"]}))
    note = (
        f"Each method was trained with {seeds} seeds and the learning rates {tried}. "
        f"The run took {minutes:.0f} minutes ({run['date']})."
    )
    return f"{table(names, rows)}\n\n{wrapped(note)}"


def language_bytes() -> str:
    """Return the table of bytes and losses of tickets and of rounded trained models."""
    run = read("language_tuned")
    rows = [
        (
            _width(point),
            point["name"],
            f"{point['bytes'] / 1e3:.1f}",
            pm(point["mean"], point["std"], 3),
        )
        for point in sorted(run["bytes"], key=lambda p: (p["width_multiplier"], p["bytes"]))
    ]
    seeds = run["bytes"][0]["count"]
    names = ("width", "model", "kB", "validation loss")
    note = f"The numbers after ± are standard deviations over {seeds} seeds."
    return f"{table(names, rows)}\n\n{note}"
