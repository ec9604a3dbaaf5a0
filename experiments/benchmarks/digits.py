"""Compute the full-size table of `experiments.examples.digits_table`, and measure the time.

``python -m experiments.benchmarks.digits`` needs `scikit-learn`.
"""

import argparse
import os
import time

from experiments import machine
from experiments.examples import digits_table
from slth_jax import storage


def main() -> None:
    """Train all networks of the table, print the table, and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", default="experiments/benchmarks/results")
    options = parser.parse_args()
    out, load = storage.make_folder(options.out), os.getloadavg()[0]
    begun = time.perf_counter()
    fits = digits_table.main(options.steps, options.seeds)
    result = {"steps": options.steps, "seeds": options.seeds, "table": fits.table()}
    result |= {"seconds": round(time.perf_counter() - begun, 1), "load_average": load}
    print(fits)
    storage.write_json(out / "digits_table.json", result | machine.report())


if __name__ == "__main__":
    main()
