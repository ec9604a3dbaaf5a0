"""Collect the kinds of networks and layers, their named cases, and counts of verdicts."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from experiments.networks import archives, hugging_face, layers, single_files
from experiments.networks.judge import Case, Verdict, judge

DRAWS: dict[str, Callable[[str], Case]] = {
    **{kind: partial(hugging_face.draw, kind) for kind in hugging_face.FAMILIES},
    "archive": archives.draw,
    "llama2.c": partial(single_files.draw, "llama2.c"),
    "gguf": partial(single_files.draw, "gguf"),
    **{kind: partial(layers.draw, kind) for kind in ("torch", "linen", "nnx")},
}
"""For each kind: the function that draws a case from a seed."""

CASES = (*hugging_face.CASES, *archives.CASES, *single_files.CASES, *layers.CASES)


def named(only: Sequence[str]) -> Iterator[Callable[[Path], Verdict]]:
    """Yield, for each named case of the kinds `only`, a function that returns the verdict."""
    for case in CASES:
        if case.name.partition(":")[0] in only:
            yield partial(judge, case)


def drawn(kind: str, seed: str) -> Callable[[Path], Verdict]:
    """Draw a case; return a function that returns the verdict on this case."""
    return partial(judge, DRAWS[kind](seed))


def counts(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Count the verdicts of each kind, and find the largest difference in a case that was read."""
    read = [v.difference for v in verdicts if v.kind == "read" and v.difference is not None]
    return {
        "drawn": len(verdicts),
        "read": len(read),
        "refused": sum(v.kind == "refused" for v in verdicts),
        "faults": sum(v.fault for v in verdicts),
        "largest_difference": max(read, default=0.0),
    }
