"""The command line `python -m experiments.networks`; the package's docstring describes it."""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from experiments import networks


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge all named cases and the drawn cases; return 1 if a verdict is a fault, else 0."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.networks",
        description=networks.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--draws", type=int, default=40, help="draws per kind (default: 40)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws (default: 0)")
    parser.add_argument("--only", default="", help="kinds, separated by commas (default: all)")
    parser.add_argument("--out", metavar="FILE.json", help="write the verdicts to this file")
    options = parser.parse_args(arguments)
    from experiments import machine
    from experiments.networks import kinds
    from experiments.networks.judge import Verdict

    start = time.perf_counter()
    only = [name for name in options.only.split(",") if name] or list(kinds.DRAWS)
    unknown = set(only) - kinds.DRAWS.keys()
    if unknown:
        parser.error(f"--only must be among {', '.join(kinds.DRAWS)}, got {unknown.pop()!r}")

    def judged(case: Callable) -> Verdict:
        with tempfile.TemporaryDirectory() as folder:
            verdict = case(Path(folder))
        if verdict.fault:
            print(f"{verdict.kind}: {verdict.name}: {verdict.line}", flush=True)
        return verdict

    named = [judged(case) for case in kinds.named(only)]
    drawn = {
        kind: [judged(kinds.drawn(kind, f"{options.seed} {i}")) for i in range(options.draws)]
        for kind in only
    }
    counts = {kind: kinds.counts(verdicts) for kind, verdicts in drawn.items()}
    for kind, count in counts.items():
        print(f"{kind:<10}", ", ".join(f"{name} {value}" for name, value in count.items()))
    faults = [v for v in (*named, *(v for group in drawn.values() for v in group)) if v.fault]
    seconds = round(time.perf_counter() - start)
    print(f"{len(named)} named networks, {len(faults)} faults, {seconds} s")
    if options.out:
        report = {
            "seed": options.seed, "seconds": seconds, "named": [vars(v) for v in named],
            "drawn": counts, "faults": [vars(v) for v in faults], **machine.report(),
        }  # fmt: skip
        Path(options.out).write_text(json.dumps(report, indent=1) + "\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
