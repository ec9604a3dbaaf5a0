"""Execute a notebook in a kernel of its own."""

from pathlib import Path
from typing import Any

import nbclient
import nbformat

FOLDER = Path(__file__).parent
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.ipynb")))
SETTING = "QUICK = False"


def read(name: str) -> Any:
    """Return a notebook by its name."""
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def execute(notebook: Any, folder: Path, *, quick: bool = False, timeout: float = 600) -> Any:
    """Run all cells in order, in `folder`, and return the notebook with its new outputs.

    Args:
      notebook: as `read` returns it; it is changed.
      folder: the kernel's working folder, into which the notebook writes.
      quick: whether to set the notebook's `QUICK` to True.
      timeout: seconds a cell may take.

    Raises:
      nbclient.exceptions.CellExecutionError: a cell failed.
    """
    if quick:
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.source = cell.source.replace(SETTING, "QUICK = True")
    client = nbclient.NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
    )
    return client.execute()


def write(name: str, notebook: Any) -> None:
    """Write a notebook without entries that change: versions of this machine, times."""
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": kernel, "language_info": {"name": "python"}}
    )
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number:02d}", nbformat.from_dict({})
    nbformat.write(notebook, FOLDER / f"{name}.ipynb")
