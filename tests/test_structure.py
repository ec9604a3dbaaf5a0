"""The order of the rooms: who may import whom, and what importing the library pulls in."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Floors of the house, lowest first: a wing or a module may import those before it, nothing after.
FLOORS = [
    "types", "checks", "theory", "distributed", "storage", "machines", "initializers",
    "subset_sum", "supermask", "attention", "placement", "transformer", "models", "guarantee",
    "construction", "edge_popup", "modules", "gpt2", "factored", "sources", "ticket", "huggingface",
    "sweep", "hide", "plots", "cli", "__main__",
]  # fmt: skip


def imported(path):
    """Yield the full names of the modules that a file imports, wherever it does so."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files_of(package):
    """Return {'a.b': path} of the files of a package, in folders too; a face is its wing."""
    root = ROOT / package
    named = {}
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        named[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return named


def arrows_of(package):
    """Return {module: modules of the same package that it imports}."""
    named = files_of(package)
    arrows = {}
    for name, path in named.items():
        targets = set()
        for target in imported(path):
            inner = target.removeprefix(f"{package}.")
            if inner not in named:  # `from a.b import c`: the module a.b, if a.b.c is none
                inner = inner.rpartition(".")[0]
            if target.startswith(f"{package}.") and inner in named:
                targets.add(inner)
        arrows[name] = targets - {name}
    return arrows


def test_every_wing_has_its_floor_and_arrows_point_one_way():
    arrows = arrows_of("slth_jax")
    arrows.pop("")  # the package itself imports nothing, and everybody may read its version
    assert {name.split(".")[0] for name in arrows} <= set(FLOORS)
    for name, targets in arrows.items():
        wing = name.split(".")[0]
        for target in targets - {""}:
            other = target.split(".")[0]
            if other != wing:
                assert FLOORS.index(other) < FLOORS.index(wing), f"{name} imports {target}"
            else:
                assert target != wing, f"{name} imports the face of its own wing"


def test_the_library_does_not_know_the_experiments():
    for name, path in files_of("slth_jax").items():
        for target in imported(path):
            assert target.split(".")[0] not in ("experiments", "tests"), f"{name} imports {target}"


@pytest.mark.parametrize("package", ["slth_jax", "experiments"])
def test_no_file_imports_another_in_a_circle(package):
    arrows = arrows_of(package)
    arrows.pop("")
    while arrows:
        free = {name for name, targets in arrows.items() if not targets & arrows.keys()}
        assert free, f"a circle among {sorted(arrows)}"
        arrows = {name: targets for name, targets in arrows.items() if name not in free}


def test_importing_the_library_is_light():
    """No plotting, data or network library comes along, and no device is touched."""
    code = (
        "import sys, slth_jax.construction, slth_jax.sweep, slth_jax.ticket, slth_jax.gpt2\n"
        "import slth_jax.edge_popup, slth_jax.huggingface, slth_jax.theory\n"
        "heavy = {'matplotlib', 'pandas', 'torch', 'datasets', 'tiktoken', 'transformers',\n"
        "         'requests', 'aiohttp', 'experiments', 'tensorboard'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
        "from jax._src import xla_bridge\n"
        "print(xla_bridge.backends_are_initialized())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.split("\n")[:2] == ["[]", "False"], done.stdout + done.stderr
