"""Replace the generated blocks of the README and of the pages in `docs/`."""

import re
from collections.abc import Callable
from pathlib import Path

from experiments.pages import (
    bits,
    guarantees,
    language,
    law,
    models,
    paper_scale,
    results,
    supermasks,
    trust,
)
from experiments.pages.blocks import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MODULES = (law, results, language, guarantees, supermasks, bits, models, trust, paper_scale)
BLOCK = re.compile(r"(<!-- begin (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def rendered(page: Path) -> str:
    """Return the text of a page, with all its blocks generated from the committed results.

    Raises:
      ValueError: a block has the name of no function, or of more than one function.
    """

    def block(match: re.Match[str]) -> str:
        name = match[2]
        functions: list[Callable[[], str]] = [
            vars(module)[name] for module in MODULES if name in vars(module)
        ]
        if len(functions) != 1:
            raise ValueError(f"{page.name}: {len(functions)} functions write the block {name}")
        return f"{match[1]}{functions[0]().strip()}\n{match[3]}"

    return BLOCK.sub(block, page.read_text())
