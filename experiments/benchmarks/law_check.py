"""Check the fitted law of the width at shapes, errors and seeds to which it was not fitted.

    python -m experiments.benchmarks.law_check --out FILE.json

A point (d, H, epsilon) is a width d, a number H of heads and an error epsilon. Let n be the width
of the random network that ``theory.attention_widths(constant='measured')`` returns for a point. The
mean error over random networks should be at most epsilon at width n, and larger than epsilon at
width n / 2.
"""

import argparse
import math
from pathlib import Path

import jax
import numpy as np

from experiments import machine
from experiments.law.trial import make_trial
from slth_jax import storage, theory

POINTS = (
    (3, 1, 0.02),
    (5, 1, 0.2),
    (6, 2, 0.05),
    (6, 1, 0.002),
    (10, 5, 0.02),
    (12, 3, 0.3),
    (12, 1, 0.005),
    (20, 4, 0.05),
    (24, 8, 0.2),
    (24, 2, 0.002),
    (40, 1, 0.3),
    (48, 3, 0.02),
)
"""The points (d, H, epsilon). None of these values of d is on the experiment's grid."""


def check(d: int, heads: int, epsilon: float, *, seeds: int, first: int) -> dict[str, float]:
    """Return the mean errors over new sources at the width of the law and at half of this width."""
    width = theory.attention_widths(
        epsilon, d_in=d, d_out=d, num_heads=heads, alpha=math.sqrt(d), constant="measured"
    ).n_k
    trial = make_trial(
        target="spectral", num_heads=heads, d=d, rule="fitted", sequences=4, tokens=8
    )
    keys = [jax.random.key(first + s, impl="threefry2x32") for s in range(seeds)]
    out: dict[str, float] = {"d": d, "heads": heads, "epsilon": epsilon, "width": width}
    for name, n in (("error", width), ("error_at_half", max(d, width // 2))):
        run = jax.jit(lambda key, n=n: trial(key, {"width": n, "width_max": n})["error"])
        errors = np.array([float(run(key)) for key in keys])
        out[name] = float(errors.mean())
        out[f"{name}_se"] = float(errors.std(ddof=1) / math.sqrt(seeds))
    return out | {"met": out["error"] <= epsilon, "half_met": out["error_at_half"] <= epsilon}


def main() -> None:
    """Check the law at all points, and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", default="law_check.json", help="the file for the results")
    parser.add_argument("--seeds", type=int, default=12, help="new sources per point")
    parser.add_argument("--first", type=int, default=1_000_000, help="the first source's seed")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    rows = []
    for point in POINTS:
        rows.append(check(*point, seeds=options.seeds, first=options.first))
        print(rows[-1], flush=True)
    report = {
        "met": sum(row["met"] for row in rows),
        "half_met": sum(row["half_met"] for row in rows),
        "points": rows,
        "seeds": options.seeds,
        "first": options.first,
        "device": machine.device(),
    }
    storage.write_json(Path(options.out), report)


if __name__ == "__main__":
    main()
