"""Blocks of the page on damaged files and bad arguments."""

from typing import Any

from experiments.benchmarks.killed_work import CHUNK
from experiments.pages.blocks import g, read, table, wrapped


def fuzz_counts() -> str:
    """The counts of the fuzzer's cases, and the conditions of the run."""
    run = read("fuzz")
    kinds = ("refused", "same", "read")
    rows = [
        [name, *(counts.get(kind, 0) for kind in kinds)] for name, counts in run["counts"].items()
    ]
    total = sum(sum(counts.values()) for counts in run["counts"].values())
    header = [
        "subject",
        "refused in one line",
        "read as the whole file",
        "read, another valid content",
    ]
    text = wrapped(
        f"{total:,} cases with seed {run['seed']}, {len(run['failures'])} failures; {run['date']}, "
        f"{run['device']}, {run['seconds'] / 60:.0f} minutes beside other programs."
    )
    return f"{table(header, rows)}\n\n{text}"


def networks_drawn() -> str:
    """The counts of drawn networks and layers, and the conditions of the run."""
    run = read("networks")
    rows = [
        [name, c["drawn"], c["read"], c["refused"], g(c["largest_difference"]) if c["read"] else ""]
        for name, c in run["drawn"].items()
    ]
    header = ["kind", "drawn", "read", "refused in one line", "largest difference of those read"]
    text = wrapped(
        f"{sum(row[1] for row in rows):,} draws with seed {run['seed']} and {len(run['named'])} named "
        f"networks, {len(run['faults'])} of all read wrongly; {run['date']}, {run['device']}."
    )
    return f"{table(header, rows)}\n\n{text}"


def networks_named() -> str:
    """The verdict on every named network."""
    rows = []
    for entry in read("networks")["named"]:
        if entry["kind"] == "read":
            verdict = f"read, {g(entry['difference'])}"
        else:
            verdict = f"{entry['kind']}: `{shortened(entry['line'])}`"
        rows.append([shortened(entry["name"], 90), verdict])
    return table(["network or layer", "verdict"], rows)


def shortened(text: str, length: int = 150) -> str:
    """Return a line of a file for a cell of a table."""
    text = text.replace("|", "/").replace("`", "'")
    return text if len(text) <= length else f"{text[: length - 4]} ..."


def kills() -> str:
    """The table of kills, and the conditions."""
    run = read("kills")
    rows = []
    for name in dict.fromkeys(report["work"] for report in run["reports"]):
        reports = [report for report in run["reports"] if report["work"] == name]
        columns = ("kills", "kills_in_a_save", "runs")
        rows.append([name, *(sum(report[column] for report in reports) for column in columns)])
    total, again = sum(row[1] for row in rows), _trials_again(run)
    header = ["run", "kills", "of these in the middle of a save", "runs, each with equal bits"]
    text = wrapped(
        f"{total} kills; every run ended with the bits of an undisturbed one. The sweeps computed "
        f"{again:,} trials again, at most one chunk of {CHUNK} per kill. {run['date']}, "
        f"{run['device']}, beside other programs."
    )
    return f"{table(header, rows)}\n\n{text}"


def _trials_again(run: dict[str, Any]) -> int:
    return sum(report["trials_computed_again"] for report in run["reports"])
