"""The notebooks run from top to bottom at quick settings, and are committed with their outputs.

``pytest -m notebooks`` runs these alone.
"""

import ast
import importlib
import re

import pytest
from cells import cells

from experiments.notebooks import run

pytestmark = pytest.mark.notebooks
NAMES = (
    "a_random_network_answers_and_understands",
    "a_random_network_tells_a_story",
    "a_ticket_for_your_pytorch_attention",
    "strong_tickets_in_ten_minutes",
    "train_a_supermask",
)


# "The number to change" of each notebook, and another value.
CHANGES = {
    "a_random_network_answers_and_understands": {"SAMPLES = 12 if QUICK else 16": "SAMPLES = 8"},
    "a_random_network_tells_a_story": {"SAMPLES = 12 if QUICK else 20": "SAMPLES = 8"},
    "a_ticket_for_your_pytorch_attention": {"UNITS = 16 if QUICK else 24": "UNITS = 12"},
    "strong_tickets_in_ten_minutes": {"WIDTH = 160": "WIDTH = 24"},
    "train_a_supermask": {"KEEP = 0.5": "KEEP = 0.2"},
}


def code_of(notebook):
    """Return the source of all code cells, without lines that only IPython understands."""
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return re.sub(r"^( *)%.*$", r"\1pass", "\n".join(cells), flags=re.M)


def outputs_of(notebook):
    return [out for cell in notebook.cells for out in cell.get("outputs", ())]


def test_every_notebook_is_here():
    assert NAMES == run.NAMES


@pytest.mark.parametrize("name", cells(NAMES, fast=["strong_tickets_in_ten_minutes"]))
def test_it_runs_from_top_to_bottom(name, tmp_path, monkeypatch):
    monkeypatch.delenv("SLTH_DATA", raising=False)  # the story's small model, here as anywhere
    # As in a reader's kernel: as many devices as there are, and the library at hand.
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(run.FOLDER.parents[1]))
    done = run.execute(run.read(name), tmp_path, quick=True, timeout=300)
    kinds = {kind for out in outputs_of(done) for kind in out.get("data", {})}
    assert "image/png" in kinds
    assert all(out.output_type != "error" for out in outputs_of(done))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_number_to_change_can_be_changed_in_the_same_folder(name, tmp_path, monkeypatch):
    """Files of the first run, such as checkpoints, do not stop a run with another number."""
    monkeypatch.delenv("SLTH_DATA", raising=False)
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(run.FOLDER.parents[1]))
    for changes in ({}, CHANGES[name]):
        done = run.execute(run.read(name), tmp_path, quick=True, changes=changes, timeout=300)
        assert all(out.output_type != "error" for out in outputs_of(done))


@pytest.mark.parametrize("name", NAMES)
def test_it_is_committed_with_its_outputs(name):
    notebook = run.read(name)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.source.strip() for cell in cells)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = outputs_of(notebook)
    assert outputs and all(out.output_type != "error" for out in outputs)
    pictures = [out["data"]["image/png"] for out in outputs if "image/png" in out.get("data", {})]
    assert pictures and sum(map(len, pictures)) < 500_000
    assert sum(cell.source.count(run.SETTING) for cell in cells) == 1
    assert cells[0].source.startswith("import importlib.util")  # the install cell
    assert set(notebook.metadata) == {"kernelspec", "language_info"}


@pytest.mark.parametrize("name", NAMES)
def test_it_names_no_machine_and_no_person(name):
    text = (run.FOLDER / f"{name}.ipynb").read_text()
    for word in ("/root", "/home", "/tmp", "/work", "/Users", "site-packages", "127.0.0.1"):
        assert word not in text, word


@pytest.mark.parametrize("name", NAMES)
def test_it_uses_public_names_only(name):
    """Every `module.NAME` of the library is in that module's `__all__`, or has no underscore."""
    tree = ast.parse(code_of(run.read(name)))
    modules = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "slth_jax":
            assert node.module == "slth_jax"
            for alias in node.names:
                module = importlib.import_module(f"slth_jax.{alias.name}")
                modules[alias.asname or alias.name] = module
        assert not (isinstance(node, ast.Import) and "slth" in node.names[0].name)
    used = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            if node.attr.startswith("_") and not node.attr.endswith("__"):
                assert node.attr in ("_asdict", "_fields"), node.attr  # of a NamedTuple
            if isinstance(node.value, ast.Name) and node.value.id in modules:
                used.add((node.value.id, node.attr))
    assert used
    for module, name_ in used:
        public = getattr(modules[module], "__all__", dir(modules[module]))
        assert name_ in public, f"{module}.{name_}"
