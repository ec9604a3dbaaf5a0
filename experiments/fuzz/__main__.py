"""The command line `python -m experiments.fuzz`; the package's docstring describes it."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from experiments import fuzz


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cases and print the counts; return 1 if a case failed."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.fuzz",
        description=fuzz.__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--cases", type=int, default=1000, help="number of cases (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all changes (default: 0)")
    parser.add_argument("--only", default="", help="prefixes of subjects' names, by commas")
    parser.add_argument("--out", metavar="FILE.json", help="write the counts to this file")
    options = parser.parse_args(arguments)
    from experiments import machine
    from experiments.fuzz.run import run

    start = time.perf_counter()
    only = [name for name in options.only.split(",") if name]
    counts, failures = run(options.cases, options.seed, only)
    for name, by_kind in counts.items():
        print(f"{name:<20}", ", ".join(f"{k} {v}" for k, v in sorted(by_kind.items())))
    seconds = round(time.perf_counter() - start)
    print(f"{sum(c.total() for c in counts.values())} cases, {len(failures)} failures, {seconds} s")
    if options.out:
        report = {
            "seed": options.seed, "seconds": seconds, "counts": counts,
            "failures": [vars(failure) for failure in failures], **machine.report(),
        }  # fmt: skip
        Path(options.out).write_text(json.dumps(report, indent=1) + "\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
