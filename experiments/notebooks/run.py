"""Execute a notebook in a separate kernel."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbclient
import nbformat

FOLDER = Path(__file__).parent
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.ipynb")))
SETTING = "QUICK = False"


def read(name: str) -> Any:
    """Read the notebook with the given name."""
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def execute(
    notebook: Any,
    folder: Path,
    *,
    quick: bool = False,
    changes: Mapping[str, str] | None = None,
    timeout: float = 600,
) -> Any:
    """Run all cells in order, in `folder`, and return the notebook with its new outputs.

    Args:
      notebook: a notebook from `read`, which is changed in place.
      folder: the kernel's working directory, which receives the notebook's files.
      quick: whether to set `QUICK` to True in the notebook.
      changes: replacements of texts in code cells; each text must occur exactly once. None for no
        replacement.
      timeout: the limit per cell, in seconds.

    Raises:
      ValueError: a text of `changes` does not occur exactly once.
      nbclient.exceptions.CellExecutionError: a cell failed.
    """
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for old, new in {**({SETTING: "QUICK = True"} if quick else {}), **(changes or {})}.items():
        count = sum(cell.source.count(old) for cell in code)
        if count != 1:
            raise ValueError(f"{old!r} occurs {count} times")
        for cell in code:
            cell.source = cell.source.replace(old, new)
    client = nbclient.NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
    )
    return client.execute()


def write(name: str, notebook: Any) -> None:
    """Write a notebook without metadata about this machine's versions and execution times."""
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": kernel, "language_info": {"name": "python"}}
    )
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number:02d}", nbformat.from_dict({})
    nbformat.write(notebook, FOLDER / f"{name}.ipynb")
