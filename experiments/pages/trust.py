"""Blocks of the page on damaged files and bad arguments."""

from experiments.pages.blocks import read, table, wrapped


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


def kills() -> str:
    """The sentence about kills of a sweep."""
    run = read("kill")
    return wrapped(
        f"A sweep of {run['trials']:,} trials was killed {run['kills']} times, "
        f"{run['kills_in_a_save']} times in the middle of a save, and resumed each time: its results "
        f"{'have' if run['identical'] else 'do not have'} the bits of an undisturbed sweep. "
        f"{run['trials_computed_again']:,} trials were computed again, at most one chunk of "
        f"{run['chunk']} per kill."
    )
