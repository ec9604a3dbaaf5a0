"""Rewrite the generated blocks of README and pages: `python -m experiments.pages [--check]`."""

import argparse
import sys

from experiments.pages import render
from experiments.pages.blocks import ROOT


def main() -> int:
    """Rewrite or check all pages; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m experiments.pages", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing, fail if pages differ")
    options = parser.parse_args()
    differing = [page for page in render.PAGES if render.rendered(page) != page.read_text()]
    for page in differing:
        print(page.relative_to(ROOT))
        if not options.check:
            page.write_text(render.rendered(page))
    return 1 if options.check and differing else 0


if __name__ == "__main__":
    sys.exit(main())
