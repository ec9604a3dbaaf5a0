"""Plain words: habits of writing that a program can see, in docstrings, comments, names and pages.

    python -m tests.test_words PATH [PATH...]

prints a line for each place in these files or folders, and exits with 1 if there are any.
"""

import ast
import doctest
import io
import json
import re
import sys
import textwrap
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ["README", "CHANGELOG", "CONTRIBUTING"]
CHECKED = ["slth_jax", "experiments", "tests", "docs", *(f"{name}.md" for name in PAGES)]

MOST_PARAMETERS = 10
# Names that say nothing about the content of a variable.
EMPTY_NAMES = frozenset(
    {"found", "told", "made", "wanted", "held", "came", "got", "here", "there", "one", "own"}
    | {"some", "each"}
)
AMOUNTS = (
    r"bits?|bytes?|floats?|numbers?|sources?|samples?|(hidden )?units?|seeds?|lines?|columns?|rows?"
    r"|tokens?|trials?|steps?|sums?|measurements?|values?|entry|entries|masks?|scales?|products?"
    r"|groups?|pieces?|updates?|sequences?|once|twice|one|two|four|\d[\d.,]*( [KMG]i?B| [mun]?s)?"
)
PER = (
    "bit|block|chunk|column|coordinate|core|device|dimension|entry|epoch|group|head|host|instance"
    "|layer|length|line|map|matrix|minute|network|neuron|part|process|product|row|run|sample|second"
    "|seed|setting|source|step|sum|token|trial|unit|weight|width"
)
# Patterns that are searched in prose, code between backticks cut out, and the advice to print.
HABITS = {
    r"\b(wings?|trapdoors?|arrows?|rooms?|circles?|floors?|houses?)\b(?!\()": "a house word: "
    "subpackage, public API, layer, module, pitfall, import, cycle",
    r"(?<!hugging\s)\bfaces?\b": "a house word: public API, interface",
    r"\bwhat\b(?![^.;]*\?)": "'what': name the thing",
    r"\bof before\b|(^|[.;:,(] ?)(those|one) of\b": "a pronoun: name the thing",
    r"\b(knows?|tells?|told|listens?|hears?)\b(?! apart)": "code is not a person: store, contain, "
    "depend on",
    rf"\b({AMOUNTS}) an? ({PER})\b": "a rate: 'per', not 'a'",
    r"\b(behaviors?|neighbors?|favor\w*|center(s|ed)?|gray|analyz\w+|labeled)\b": "British",
}
OF = re.compile(r"^\s*\*{0,2}\w+(, \*{0,2}\w+)*: (of|how|what|as the caller|that which)\b")


def complaints(path: Path) -> list[str]:
    """Return a line 'file:line: ...' for each habit in a Python file, a page or a notebook."""
    text = path.read_text()
    if path.suffix == ".py":
        habits = python(text)
    elif path.suffix == ".ipynb":
        habits = notebook(text)
    else:
        habits = page(text)
    return [f"{path}:{line}: {words}" for line, words in sorted(set(habits))]


def python(text: str, first: int = 1) -> Iterator[tuple[int, str]]:
    """Yield (line, complaint) for Python source that begins in line `first`."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 1) + first - 1
        for name in names_of(node):
            if name.strip("_") in EMPTY_NAMES:
                yield line, f"the name {name!r} does not say what it contains"
        if isinstance(node, ast.FunctionDef | ast.Lambda):
            count = len(parameters(node))
            if count > MOST_PARAMETERS:
                yield line, f"{count} parameters, at most {MOST_PARAMETERS}"
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and node.body:
            yield from docstring(node, first)
        if isinstance(node, ast.keyword) and node.arg == "help":
            for part in ast.walk(node.value):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield from prose(part.value, line)
                    if re.match(r"(of|what|how) ", part.value):
                        yield line, f"a help text that begins with {part.value.split()[0]!r}"
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield from prose(token.string.lstrip("# "), token.start[0] + first - 1)


def names_of(node: ast.AST) -> list[str]:
    """Return the names that a node binds."""
    if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
        return [node.id if isinstance(node, ast.Name) else node.attr]
    if isinstance(node, ast.arg):
        return [node.arg]
    if isinstance(node, ast.FunctionDef | ast.ExceptHandler):
        return [node.name or ""]
    return [node.asname or ""] if isinstance(node, ast.alias) else []


def parameters(function: ast.FunctionDef | ast.Lambda) -> list[str]:
    """Return the names of a function's parameters, without `self` and `cls`."""
    given = function.args
    names = [part.arg for part in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return [name for name in names if name not in ("self", "cls")]


def docstring(node: ast.AST, first: int) -> Iterator[tuple[int, str]]:
    """Yield the complaints about a module's, class's or function's docstring."""
    text = ast.get_docstring(node, clean=False)
    if not text:
        return
    line = node.body[0].lineno + first - 1
    try:
        examples = doctest.DocTestParser().get_examples(text)
    except ValueError:
        examples = []
    for example in examples:
        code = textwrap.dedent(example.source)
        yield from python(code, line + example.lineno)
    for offset, row in enumerate(text.splitlines()):
        if OF.match(row):
            yield line + offset, f"'name: of ...': name the thing: {row.strip()!r}"
    plain = re.sub(r"(?m)^\s*(>>>|\.\.\.) .*$", "", text)
    yield from prose(plain, line)


def prose(text: str, line: int) -> Iterator[tuple[int, str]]:
    """Yield the complaints about sentences; code between backticks and quotations do not count."""
    cut = re.sub(r"``.*?``|`[^`]*`|\"[^\"\n]*\"", lambda m: re.sub(r"[^\n]", "_", m[0]), text)
    # A sentence may go on in the next line: spaces in a pattern match line ends too.
    for pattern, advice in HABITS.items():
        for match in re.finditer(pattern.replace(" ", r"\s+"), cut, re.IGNORECASE | re.MULTILINE):
            words = " ".join(match[0].split())
            yield line + cut.count("\n", 0, match.start()), f"{words!r}: {advice}"


def page(text: str, first: int = 1) -> Iterator[tuple[int, str]]:
    """Yield the complaints about a page of Markdown and about its Python snippets."""
    blocks = re.compile(r"(?ms)^```(\w*)[^\n]*\n(.*?)^```")
    for match in blocks.finditer(text):
        if match[1] == "python":
            line = first + text.count("\n", 0, match.start(2))
            yield from python(textwrap.dedent(match[2]), line)
    cut = blocks.sub(lambda match: re.sub(r"[^\n]", "", match[0]), text)
    cut = re.sub(r"\]\([^)]*\)|<[^>]+>", "]", cut)  # addresses
    yield from prose(cut, first)


def notebook(text: str) -> Iterator[tuple[int, str]]:
    """Yield the complaints about a notebook; the line is the number of the cell."""
    for number, cell in enumerate(json.loads(text)["cells"], 1):
        check = page if cell["cell_type"] == "markdown" else python
        source = re.sub(r"(?m)^(\s*)[%!].*", r"\1pass", "".join(cell["source"]))
        yield from ((number, words) for _, words in check(source))


def files_of(path: Path) -> list[Path]:
    """Return the files below a path that are checked."""
    if path.is_file():
        return [path]
    return sorted(p for end in ("py", "md", "ipynb") for p in path.rglob(f"*.{end}"))


@pytest.mark.parametrize("name", CHECKED)
def test_plain_words(name):
    files = files_of(ROOT / name)
    assert files
    assert not [line for path in files for line in complaints(path)]


@pytest.mark.parametrize(
    "source",
    [
        "def f():\n    found = 1",
        "def f(one): ...",
        "def f(x):\n    return [each for each in x]",
        "class A:\n    held: int",
        "def f(a, b, c, d, e, *, g, h, i, j, k, l): ...",
        '"""Return what was kept."""',
        '"""The face of the wing."""',
        '"""Return a network.\n\nArgs:\n  seed: of the draw.\n"""',
        '"""Return a network.\n\nArgs:\n  out: how the caller calls it.\n"""',
        "x = 1  # bits a weight",
        "x = 1  # those of the target",
        '"""Draw.\n\n>>> told = 1\n"""',
        'parser.add_argument("--seed", help="of the random network")',
    ],
)
def test_a_habit_is_seen(source):
    assert len({line for line, _ in python(source)}) == 1, source


def test_good_sentences_pass():
    text = '''
"""Return the masks of a Hugging Face model. What is `what`? Seeds per width: 3.

Args:
  seed: the seed of the draw.
"""
'''
    assert not list(python(text))
    assert not list(page("Two bits per weight.\n\n```python\nmasks = 1\n```\n"))
    assert list(page("Two bits\na weight.\n\n```python\nfound = 1\n```\n"))


if __name__ == "__main__":
    FILES = [file for path in sys.argv[1:] for file in files_of(Path(path))]
    LINES = [line for file in FILES for line in complaints(file)]
    print("\n".join(LINES))
    sys.exit(bool(LINES))
