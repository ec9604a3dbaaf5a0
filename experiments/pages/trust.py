"""Generate the parts of docs/trust.md that contain numbers, and one part of docs/pods.md."""

import statistics
from collections.abc import Sequence
from typing import Any

from experiments.benchmarks.killed_work import CHUNK, WORK
from experiments.pages.blocks import g, read, table, wrapped


def fuzz_counts() -> str:
    """Return the table that counts the cases of the fuzzer, and a paragraph on its run."""
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
        f"The fuzzer ran {total:,} cases with seed {run['seed']}; {len(run['failures'])} of the "
        f"cases failed. The run took {run['seconds'] / 60:.0f} minutes while other programs ran ({run['date']}, "
        f"{run['device']})."
    )
    return f"{table(header, rows)}\n\n{text}"


def networks_drawn() -> str:
    """Return the table that counts random networks and layers, and a paragraph on the run."""
    run = read("networks")
    rows = [
        [name, c["drawn"], c["read"], c["refused"], g(c["largest_difference"]) if c["read"] else ""]
        for name, c in run["drawn"].items()
    ]
    header = ["kind", "drawn", "read", "refused in one line", "largest difference"]
    text = wrapped(
        f"Of {sum(row[1] for row in rows):,} networks drawn with seed {run['seed']} and "
        f"{len(run['named'])} named networks, {len(run['faults'])} were read with wrong outputs "
        f"({run['date']}, {run['device']})."
    )
    return f"{table(header, rows)}\n\n{text}"


def networks_named() -> str:
    """Return the table that shows, for every named network, whether it was read or refused."""
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
    """Return the table of kills of single-process runs, and a paragraph on their results."""
    run = read("kills")
    reports = [report for report in run["reports"] if WORK[report["work"]].processes == 1]
    rows = _sums(reports)
    total, again = sum(row[1] for row in rows), _trials_again(reports)
    header = ["run", "kills", "kills in the middle of a save", "runs, all with equal bits"]
    text = wrapped(
        f"After {total} kills, the results of every run were equal, bit for bit, to the results of an "
        f"undisturbed run. After the kills, the sweeps computed {again:,} trials twice, "
        f"at most one chunk of {CHUNK} trials per kill ({run['date']}, {run['device']}, while other programs ran)."
    )
    return f"{table(header, rows)}\n\n{text}"


def kills_of_processes() -> str:
    """Return the table of kills of multi-process runs, and a paragraph on their results."""
    run = read("kills")
    reports = [report for report in run["reports"] if WORK[report["work"]].processes > 1]
    rows = []
    for name, killed, in_saves, runs in _sums(reports):
        waits = [w for r in reports if r["work"] == name for w in r["seconds_until_all_ended"]]
        times = f"{statistics.median(waits):.0f} s", f"{max(waits):.0f} s"
        rows.append([name, killed, in_saves, *times, runs])
    header = [
        "run", "kills", "kills in the middle of a save", "time until the other process ended, median",
        "maximum of this time", "runs, all with equal bits",
    ]  # fmt: skip
    text = wrapped(
        f"A process, chosen at random, was killed a random time after both "
        f"processes had started. There were {sum(row[1] for row in rows)} kills in all ({run['device']}, while other programs ran). "
        f"The results of every resumed run were equal, bit for bit, to the results of a single "
        f"undisturbed process."
    )
    return f"{table(header, rows)}\n\n{text}"


def disturbed_buckets() -> str:
    """Return a paragraph on the disturbed sweeps that wrote to an emulated bucket."""
    run = read("buckets")
    report, s3 = run["reports"]
    times, kills = report["figure_4_quick"], report["kills"]["kills"]
    return wrapped(
        f"A sweep in an emulated bucket of Google Cloud Storage was killed {kills} times, and its "
        f"server delayed or refused {report['failed_requests']} requests within "
        f"{report['fault_seconds']} s ({run['date']}, {run['device']}, while other programs ran). The "
        f"rows and masks were equal, bit for bit, to the rows and masks of an undisturbed sweep in a "
        f"folder, as after {s3['kills']['kills']} kills of a sweep in an emulated S3 bucket. A "
        f"second writer and a full quota each ended with one line. Figure 4 (quick) took "
        f"{times['ratio']:.2f} times as long with a bucket as with a folder (median of "
        f"{times['pairs']} paired runs)."
    )


def _sums(reports: Sequence[dict[str, Any]]) -> list[list[Any]]:
    """Return a row [name, kills, kills during a save, runs] for each kind of run.

    The three numbers of a row are sums over all seeds.
    """
    columns = ("kills", "kills_in_a_save", "runs")
    return [
        [name, *(sum(r[column] for r in reports if r["work"] == name) for column in columns)]
        for name in dict.fromkeys(report["work"] for report in reports)
    ]


def _trials_again(reports: Sequence[dict[str, Any]]) -> int:
    return sum(report["trials_computed_again"] for report in reports)
