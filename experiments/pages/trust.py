"""Generate the blocks of the page on damaged files and bad arguments."""

import statistics
from collections.abc import Sequence
from typing import Any

from experiments.benchmarks.killed_work import CHUNK, WORK
from experiments.pages.blocks import g, read, table, wrapped


def fuzz_counts() -> str:
    """Return the table that counts the fuzzer's cases, and a paragraph on how the fuzzer ran."""
    run = read("fuzz")
    kinds = ("refused", "same", "read")
    rows = [
        [name, *(counts.get(kind, 0) for kind in kinds)] for name, counts in run["counts"].items()
    ]
    total = sum(sum(counts.values()) for counts in run["counts"].values())
    header = [
        "subject",
        "refused in one line",
        "read with the undamaged result",
        "read with another valid result",
    ]
    text = wrapped(
        f"{total:,} cases with seed {run['seed']} had {len(run['failures'])} failures. They took "
        f"{run['seconds'] / 60:.0f} minutes while other programs ran ({run['date']}, "
        f"{run['device']})."
    )
    return f"{table(header, rows)}\n\n{text}"


def networks_drawn() -> str:
    """Return the table that counts drawn networks and layers, and a paragraph on how it was run."""
    run = read("networks")
    rows = [
        [name, c["drawn"], c["read"], c["refused"], g(c["largest_difference"]) if c["read"] else ""]
        for name, c in run["drawn"].items()
    ]
    header = ["kind", "drawn", "read", "refused in one line", "largest difference"]
    text = wrapped(
        f"Of {sum(row[1] for row in rows):,} networks drawn with seed {run['seed']} and "
        f"{len(run['named'])} named networks, {len(run['faults'])} were read wrongly "
        f"({run['date']}, {run['device']})."
    )
    return f"{table(header, rows)}\n\n{text}"


def networks_named() -> str:
    """Return the table with the verdict on every named network."""
    rows = []
    for entry in read("networks")["named"]:
        if entry["kind"] == "read":
            verdict = f"read, {g(entry['difference'])}"
        else:
            verdict = f"{entry['kind']}: `{shortened(entry['line'])}`"
        rows.append([shortened(entry["name"], 90), verdict])
    return table(["network or layer", "verdict"], rows)


def shortened(text: str, length: int = 150) -> str:
    """Return a text, shortened to `length` characters, for a cell of a table."""
    text = text.replace("|", "/").replace("`", "'")
    return text if len(text) <= length else f"{text[: length - 4]} ..."


def kills() -> str:
    """Return the table of kills in single-process runs, and a paragraph on how they were made."""
    run = read("kills")
    reports = [report for report in run["reports"] if WORK[report["work"]].processes == 1]
    rows = _sums(reports)
    total, again = sum(row[1] for row in rows), _trials_again(reports)
    header = ["run", "kills", "kills in the middle of a save", "runs, all with equal bits"]
    text = wrapped(
        f"After {total} kills, the results of every run were equal, bit for bit, to the results of an "
        f"undisturbed run. The sweeps computed {again:,} trials again, at most one chunk of "
        f"{CHUNK} per kill ({run['date']}, {run['device']}, while other programs ran)."
    )
    return f"{table(header, rows)}\n\n{text}"


def kills_of_processes() -> str:
    """Return the table of kills in multi-process runs, and a paragraph on how they were made."""
    run = read("kills")
    reports = [report for report in run["reports"] if WORK[report["work"]].processes > 1]
    rows = []
    for name, killed, in_saves, runs in _sums(reports):
        waits = [w for r in reports if r["work"] == name for w in r["seconds_until_all_ended"]]
        times = f"{statistics.median(waits):.0f} s", f"{max(waits):.0f} s"
        rows.append([name, killed, in_saves, *times, runs])
    header = [
        "run", "kills", "kills in the middle of a save", "the other process ended after (median)",
        "at most", "runs, all with equal bits",
    ]  # fmt: skip
    text = wrapped(
        f"A process, chosen at random, was killed a random time after both had started, "
        f"{sum(row[1] for row in rows)} times in all ({run['device']}, while other programs ran). "
        f"The results of every resumed run were equal, bit for bit, to the results of a single "
        f"undisturbed process."
    )
    return f"{table(header, rows)}\n\n{text}"


def _sums(reports: Sequence[dict[str, Any]]) -> list[list[Any]]:
    """Return rows [name, kills, kills during a save, runs], one for each kind of run.

    The three counts are sums over all seeds.
    """
    columns = ("kills", "kills_in_a_save", "runs")
    return [
        [name, *(sum(r[column] for r in reports if r["work"] == name) for column in columns)]
        for name in dict.fromkeys(report["work"] for report in reports)
    ]


def _trials_again(reports: Sequence[dict[str, Any]]) -> int:
    return sum(report["trials_computed_again"] for report in reports)
