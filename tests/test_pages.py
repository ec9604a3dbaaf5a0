"""README and pages: their snippets run as they stand, and their links lead somewhere."""

import doctest
import importlib
import re
from pathlib import Path

import pytest
from cells import cells

from experiments.pages import pictures, render

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
# A block with a title needs files that are not here: ```python title="..."
SNIPPET = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
IMAGE = re.compile(r"!\[[^]]*\]\(([^)]+)\)\n\n(.*)")
LINK = re.compile(r"\]\(([^)\s]+)\)")
WITH_SNIPPETS = [page for page in PAGES if SNIPPET.search(page.read_text())]


def name(page):
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("of_page", cells(map(name, WITH_SNIPPETS), fast=["README.md"]))
def test_the_snippets_of_a_page_run_one_after_another(of_page, tmp_path, monkeypatch, capsys):
    page = ROOT / of_page
    monkeypatch.chdir(tmp_path)
    if "import torch" in page.read_text():
        pytest.importorskip("torch")
    names = {"__name__": "__main__"}
    for number, code in enumerate(SNIPPET.findall(page.read_text()), 1):
        exec(compile(code, f"{name(page)}, snippet {number}", "exec"), names)
    assert "nan" not in capsys.readouterr().out


def test_numbers_on_pages_are_the_committed_results():
    """`python -m experiments.pages` would change no page."""
    written = 0
    for page in render.PAGES:
        text = page.read_text()
        assert render.rendered(page) == text, f"{page.name}: run python -m experiments.pages"
        written += len(render.BLOCK.findall(text))
    assert written > 15


def test_a_number_that_differs_from_its_file_is_seen(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- begin law_check -->\nmeets epsilon at 11 of 12\n<!-- end -->\n")
    words = " ".join(render.rendered(page).split())
    assert "at 12 of 12" in words and "11 of 12" not in words
    page.write_text("<!-- begin no_such_block -->\n<!-- end -->\n")
    with pytest.raises(ValueError, match="0 functions write the block no_such_block"):
        render.rendered(page)


@pytest.mark.parametrize("name", pictures.PICTURES)
def test_a_committed_picture_is_drawn_from_its_result_by_the_code_as_it_is(name):
    """Its mark has the labels of a new drawing and the checksum of the committed result."""
    _, new = pictures.drawn(name)
    assert pictures.mark(name) == new, "run python -m experiments.pages --pictures"


@pytest.mark.parametrize(
    "page", [page for page in PAGES if IMAGE.search(page.read_text())], ids=name
)
def test_every_picture_of_a_page_has_a_caption(page):
    for path, after in IMAGE.findall(page.read_text()):
        assert page.name == "README.md" or after.startswith("*Look for this: "), path


def anchors(page):
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", page.read_text()), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    named = set(re.findall(r'<a id="([^"]+)">', page.read_text()))
    return named | {re.sub(r"[-\s]+", "-", words.strip()) for words in plain}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_files_and_headings(page):
    for link in LINK.findall(FENCED.sub("", page.read_text())):
        if link.startswith("https://"):  # no network here
            continue
        path, _, anchor = link.partition("#")
        if path.startswith("api/"):  # made with the site, where it is looked at
            module = ROOT / "slth_jax" / Path(path).stem
            assert module.exists() or module.with_suffix(".py").exists(), link
            continue
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


# Where a user starts: each of these functions shows an example.
EXAMPLES = {
    "attention.core": ["apply"],
    "construction.prune": ["prune_attention"],
    "construction.width": ["find_width"],
    "edge_popup.fitting": ["fit"],
    "subset_sum.solver": ["solve"],
    "subset_sum.few": ["solve_few"],
    "supermask": ["from_scores"],
    "theory": ["attention_widths"],
    "ticket.file": ["save"],
}


@pytest.mark.parametrize("module", EXAMPLES)
def test_the_examples_of_docstrings_come_out_as_written(module):
    imported = importlib.import_module(f"slth_jax.{module}")
    tests = [test for test in doctest.DocTestFinder().find(imported) if test.examples]
    shown = {test.name.rpartition(".")[2] for test in tests}
    assert set(EXAMPLES[module]) <= shown
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    said = []
    for test in tests:
        runner.run(test, out=said.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(said)
