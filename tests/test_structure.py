"""The order of the rooms: who may import whom, and what importing the library pulls in."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# A module may import those before it, and nothing after it.
ORDER = [
    "types", "checks", "theory", "files", "checkpoint", "initializers", "_meet_in_the_middle",
    "_subset_sum_tile", "subset_sum", "supermask", "attention", "placement", "transformer",
    "pairing", "grouping", "entries", "guarantee", "pruning", "construction", "edge_popup",
    "gpt2_config", "gpt2_core", "gpt2", "ticket", "huggingface", "sweep_grid", "sweep_program",
    "sweep_hosts", "sweep_results", "sweep_store", "sweep",
]  # fmt: skip


def imported(path):
    """Yield the full names of the modules that a file imports, wherever it does so."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_module_has_its_place_and_arrows_point_one_way():
    modules = {path.stem: path for path in (ROOT / "slth_jax").glob("*.py")}
    modules.pop("__init__")
    assert set(modules) == set(ORDER)
    for name, path in modules.items():
        for target in imported(path):
            package, _, rest = target.partition(".")
            assert package != "experiments", f"{path.name} imports {target}"
            inner = rest.split(".")[0]
            if package == "slth_jax" and inner in ORDER:
                assert ORDER.index(inner) < ORDER.index(name), f"{name} imports {inner}"


def test_experiments_do_not_import_each_other_in_a_circle():
    names = {p.stem: p for p in (ROOT / "experiments").glob("*.py") if p.stem != "__init__"}
    arrows = {
        name: {
            t.split(".")[1] for t in imported(path) if t.startswith("experiments.")
        } & names.keys() - {name}
        for name, path in names.items()
    }  # fmt: skip
    while arrows:
        free = {name for name, targets in arrows.items() if not targets}
        assert free, f"a circle among {sorted(arrows)}"
        arrows = {n: targets - free for n, targets in arrows.items() if n not in free}


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
