"""Execute notebooks in place: ``python -m experiments.notebooks [NAME ...]``."""

import argparse
import tempfile
import time
from pathlib import Path

from experiments.notebooks import run


def main() -> None:
    """Execute the named notebooks (all if none is named) and write them with their outputs."""
    parser = argparse.ArgumentParser(prog="python -m experiments.notebooks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(run.NAMES))
    options = parser.parse_args()
    for name in options.names:
        if name not in run.NAMES:
            parser.error(f"NAME must be one of {', '.join(run.NAMES)}, got {name}")
    for name in options.names or run.NAMES:
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            run.write(name, run.execute(run.read(name), Path(folder)))
        print(f"{name}: {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
