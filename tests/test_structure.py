"""The order of the modules, import cycles, and the libraries that importing ours brings in."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Subpackages and modules in order: each may import earlier ones, none a later one.
ORDER = [
    "types", "checks", "wheels", "theory", "watch", "distributed", "storage", "machines",
    "initializers", "subset_sum", "supermask", "attention", "placement", "transformer", "models",
    "guarantee", "construction", "edge_popup", "modules", "factored", "ticket",
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
    """Return {'a.b': path} of a package's files, in folders too; an `__init__` is its folder."""
    root = ROOT / package
    named = {}
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        named[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return named


def imports_of(package):
    """Return {module: modules of the same package that it imports}."""
    named = files_of(package)
    imports = {}
    for name, path in named.items():
        targets = set()
        for target in imported(path):
            inner = target.removeprefix(f"{package}.")
            if inner not in named:  # `from a.b import c`: the module a.b, if a.b.c is none
                inner = inner.rpartition(".")[0]
            if target.startswith(f"{package}.") and inner in named:
                targets.add(inner)
        imports[name] = targets - {name}
    return imports


def test_every_module_has_its_place_and_imports_earlier_ones_only():
    imports = imports_of("slth_jax")
    imports.pop("")  # the package itself imports nothing, and every module may read its version
    assert {name.split(".")[0] for name in imports} <= set(ORDER)
    for name, targets in imports.items():
        package = name.split(".")[0]
        for target in targets - {""}:
            other = target.split(".")[0]
            if other != package:
                assert ORDER.index(other) < ORDER.index(package), f"{name} imports {target}"
            else:
                assert target != package, f"{name} imports the public API of its subpackage"


def test_the_library_does_not_import_the_experiments():
    for name, path in files_of("slth_jax").items():
        for target in imported(path):
            assert target.split(".")[0] not in ("experiments", "tests"), f"{name} imports {target}"


@pytest.mark.parametrize("package", ["slth_jax", "experiments"])
def test_no_import_cycle(package):
    imports = imports_of(package)
    imports.pop("")
    while imports:
        free = {name for name, targets in imports.items() if not targets & imports.keys()}
        assert free, f"an import cycle among {sorted(imports)}"
        imports = {name: targets for name, targets in imports.items() if name not in free}


def test_importing_the_library_is_light():
    """No plotting, data or network library comes along, and no device is touched."""
    code = (
        "import sys, slth_jax.construction, slth_jax.sweep, slth_jax.ticket\n"
        "import slth_jax.edge_popup, slth_jax.modules, slth_jax.theory\n"
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
