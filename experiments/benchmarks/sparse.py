"""Measure the error of sparse masks: subset sums that keep at most k of m samples.

    python -m experiments.benchmarks.sparse

Targets are Gaussian, and the samples are products of two uniform numbers. Each row of the result
contains the number m of samples per matrix entry, and the limit k (null for no limit). The row also
contains the share of ones in the mask that selects the samples, the entropy of this mask in bits
per matrix entry, and the median error divided by the standard deviation of the target's entries.
Results are written to ``results/sparse.json``.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import machine
from slth_jax import construction, storage

RESULTS = Path(__file__).parent / "results" / "sparse.json"
# Pairs of m, the number of samples per entry, and the limits k that are measured.
CASES = {8: (None, 2, 3), 12: (None, 2, 3, 4), 16: (None, 2, 3, 4, 5), 24: (2, 3, 4), 40: (2, 3, 4)}
ROWS, COLUMNS = 64, 16


def entropy(share: float) -> float:
    """Return the entropy, in bits, of a mask bit that is 1 with the probability `share`."""
    if share in (0.0, 1.0):
        return 0.0
    return float(-share * np.log2(share) - (1 - share) * np.log2(1 - share))


def measure(samples: int, most: int | None) -> dict[str, Any]:
    """Measure masks that keep at most `most` of `samples` samples; return a row of the result."""
    keys = jax.random.split(jax.random.key(samples), 3)
    width = samples * COLUMNS
    left = jax.random.uniform(keys[0], (ROWS, width), minval=-2.0, maxval=2.0)
    right = jax.random.uniform(keys[1], (width, COLUMNS), minval=-1.0, maxval=1.0)
    target = jax.random.normal(keys[2], (ROWS, COLUMNS))
    rule = construction.RULES["proof"] if most is None else construction.sparse(most)
    start = time.perf_counter()
    masks = construction.prune_product(left, right, target, construction=rule)
    product = np.asarray((left * masks[0]) @ (right * masks[1]))
    seconds = time.perf_counter() - start
    share = float(np.mean(np.asarray(masks[0])))
    return {
        "samples": samples,
        "most": most,
        "kept": share,
        "bits": samples * entropy(share),
        "error": float(np.median(np.abs(product - np.asarray(target)))),
        "seconds": round(seconds, 2),
    }


def main() -> None:
    """Measure all pairs of m and k, and write the results."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    rows = []
    for samples, limits in CASES.items():
        for most in limits:
            rows.append(measure(samples, most))
            print(rows[-1], flush=True)
    storage.write_json(RESULTS, {"rows": rows, "entries": ROWS * COLUMNS, **machine.report()})


if __name__ == "__main__":
    main()
