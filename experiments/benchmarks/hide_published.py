"""Hide all weights of small published networks, and compare each ticket with its network.

    python -m experiments.benchmarks.hide_published DATA/pretrained --out DIR [--samples 20]

The network that adds modulo 113 is compared with its ticket on all 12,769 questions. For the
attention-only network the inputs are 10,000 random sequences, each followed by a copy of itself.
For the bracket classifier the inputs are 10,000 strings of brackets. The command writes
``hide_published.json`` into DIR.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from slth_jax.cli.devices import split_cpu


def addition(rng: np.random.Generator, count: int) -> tuple[np.ndarray, slice, int | None]:
    """Return all questions a + b = ? mod 113, the answer's position and the number of answers."""
    a, b = (part.ravel() for part in np.mgrid[:113, :113])
    return np.stack([a, b, np.full_like(a, 113)], axis=1), slice(2, 3), 113


def repetition(rng: np.random.Generator, count: int) -> tuple[np.ndarray, slice, int | None]:
    """Return random sequences, each followed by its copy, and the positions to compare at."""
    first = rng.integers(0, 128, (count, 31))
    return np.concatenate([first, first], axis=1), slice(31, None), None


def brackets(rng: np.random.Generator, count: int) -> tuple[np.ndarray, slice, int | None]:
    """Return strings of brackets, half of them balanced, and the answer's position (the first)."""
    rows = np.full((count, 42), 1)
    for i, row in enumerate(rows):
        length = 2 * int(rng.integers(1, 21))
        string, depth = [], 0
        for left in range(length, 0, -1):
            opens = rng.random() < 0.5
            if i % 2:  # balanced
                opens = depth == 0 or (depth < left and opens)
            depth += 1 if opens else -1
            string.append(3 if opens else 4)
        row[: length + 2] = [0, *string, 2]
    return rows, slice(0, 1), None


NETWORKS = {
    "modadd113_1L_d128_h4.npz": addition,
    "induction_2L_d48_h4.npz": repetition,
    "brackets_3L_d56_h2.npz": brackets,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse `arguments`, run the benchmark, write the results, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", required=True)
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--count", type=int, default=10_000, help="inputs (default: 10,000)")
    options = parser.parse_args(arguments)
    split_cpu(None)
    from experiments.machine import report
    from slth_jax import storage

    out = storage.make_folder(options.out)
    rows = []
    for name, make in NETWORKS.items():
        tokens, places, choices = make(np.random.default_rng(0), options.count)
        rows.append(_measure(options.folder / name, out, options.samples, tokens, places, choices))
        print(rows[-1], flush=True)
    storage.write_json(out / "hide_published.json", {**report(), "rows": rows})
    return 0


def _measure(
    path: Path, out: Path, samples: int, tokens: np.ndarray, places: slice, choices: int | None
) -> dict[str, Any]:
    from slth_jax import hide, models

    start = time.perf_counter()
    reader = models.weights.open(path)
    spec = hide.make_spec(reader, samples=samples)
    path_out = hide.solve(reader, spec, out / path.stem, identity=hide.identity_of(path))
    seconds = time.perf_counter() - start
    both = [
        (model.load(), model.settings)
        for model in (hide.of_target(reader), hide.of_ticket(path_out))
    ]
    agree, answers = 0, 0
    for first in range(0, len(tokens), 2000):
        batch = tokens[first : first + 2000]
        target, ticket = (
            np.asarray(models.apply(params, batch, shape))[:, places, :choices].argmax(-1)
            for params, shape in both
        )
        agree += int((target == ticket).sum())
        answers += target.size
    return {
        "network": path.stem,
        "samples": samples,
        "inputs": len(tokens),
        "answers": answers,
        "agreement": agree / answers,
        "num_sums": sum(part.num_sums for part in spec.parts),
        "seconds": round(seconds, 1),
    }


if __name__ == "__main__":
    sys.exit(main())
