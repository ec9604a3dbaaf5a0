"""Rewrite the generated parts of the README and of `docs/`, and plot the committed pictures.

python -m experiments.pages [--check | --pictures]
"""

import argparse
import sys

from experiments.pages import render
from experiments.pages.blocks import ROOT


def main() -> int:
    """Rewrite all pages, or only check them; return 1 if a checked page differs, otherwise 0."""
    parser = argparse.ArgumentParser(prog="python -m experiments.pages", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing, fail if pages differ")
    parser.add_argument("--pictures", action="store_true", help="draw pictures, too (matplotlib)")
    options = parser.parse_args()
    if options.pictures and not options.check:
        from experiments.pages import pictures

        for file in pictures.draw_all():
            print(file.relative_to(ROOT))
    differing = [page for page in render.PAGES if render.rendered(page) != page.read_text()]
    for page in differing:
        print(page.relative_to(ROOT))
        if not options.check:
            page.write_text(render.rendered(page))
    return 1 if options.check and differing else 0


if __name__ == "__main__":
    sys.exit(main())
