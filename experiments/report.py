"""Write one page about finished runs: text, figures, comparisons with the paper, tables.

`gather` reads a run's folder, `render` makes the page, and `write` saves the page. The page is one
file, which contains all pictures and no scripts. The page's only links to other files lead to the
raw files in the folders of the runs.
"""

import base64
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from experiments import claims, folder, machine, registry, tables
from slth_jax import checks, storage

TEMPLATE = "report.html.jinja"
KINDS = {"svg": "image/svg+xml", "png": "image/png"}


class Figure(NamedTuple):
    """A picture as a data URL, and the picture's description."""

    source: str
    words: str


class Run(NamedTuple):
    """The parts of a run's folder that the page shows."""

    path: storage.Place
    name: str
    shows: str
    see: str
    summary: Mapping[str, Any]
    settings: Mapping[str, Any]
    figures: tuple[Figure, ...]
    files: tuple[str, ...]

    @property
    def columns(self) -> list[str]:
        """The names of all columns of the rows, in order of first occurrence."""
        return tables.columns_of(self.summary["rows"])

    @property
    def facts(self) -> list[str]:
        """Lines of text with the fits, the paper's numbers and the target's properties."""
        parts = [(name, self.summary.get(name)) for name in ("fit", "fit_drawn", "paper", "target")]
        return [line for name, value in parts if value for line in tables.lines(name, value)]

    @property
    def legend(self) -> list[str]:
        """Lines of text that explain the names on the page."""
        words = [word.strip(",:") for line in self.facts for word in line.split()]
        return tables.legend([*self.columns, *words])

    @property
    def machine(self) -> dict[str, Any]:
        """A dict with the preset, date, device, versions, time and memory of the run."""
        facts = {name: self.summary.get(name) for name in ("preset", "date", "device")}
        facts |= self.summary.get("versions", {})
        facts["time"] = machine.duration(self.summary["seconds"])
        if "peak_memory_gib" in self.summary:
            facts["peak memory of the process, GiB"] = self.summary["peak_memory_gib"]
        return {name: value for name, value in facts.items() if value is not None}


def find(paths: Iterable[str | os.PathLike[str]]) -> list[storage.Place]:
    """Return the folders of finished runs.

    Args:
      paths: folders of finished runs, or folders that contain such folders.

    Raises:
      ValueError: there is no finished run in a path; the message has one line.
    """
    folders: list[storage.Place] = []
    for path in map(storage.place, paths):
        inside: list[Any] = list(path.glob(f"*/{folder.SUMMARY}"))
        inside = sorted(inside, key=lambda file: (file.stat().st_mtime_ns, file))
        runs = [path] if (path / folder.SUMMARY).exists() else [file.parent for file in inside]
        if not runs:
            raise checks.fail("DIR", f"a folder of finished runs, with {folder.SUMMARY}", path)
        folders += runs
    return folders


def gather(path: storage.Place) -> Run:
    """Read the folder of a finished run.

    Raises:
      CheckpointError: a file is missing or damaged; the message has one line.
    """
    folder.check(path)
    summary = storage.read_json(path / folder.SUMMARY)
    needed = ("experiment", "rows", "seconds")
    if not isinstance(summary, dict) or any(name not in summary for name in needed):
        raise storage.Damaged(
            f"{path / folder.SUMMARY} is damaged: it lacks one of {', '.join(needed)}"
        )
    config = storage.read_json(path / folder.CONFIG)
    if not isinstance(config, dict) or "options" not in config:
        raise storage.Damaged(f"{path / folder.CONFIG} is damaged: it lacks options")
    name = summary["experiment"]
    known = registry.EXPERIMENTS.get(name)
    shows, see = (known.shows, known.see) if known else (name, "")
    words = summary.get("figures", {})
    # Figures are shown in the order in which they were drawn; older versions recorded no order.
    stems = list(words) or sorted({file.stem for file in path.glob("*.png")})
    return Run(
        path,
        name,
        shows,
        see,
        summary,
        config["options"],
        tuple(Figure(_embedded(path, stem), words.get(stem, shows)) for stem in stems),
        tuple(
            file for file in (folder.ROWS, folder.SUMMARY, folder.CONFIG) if (path / file).exists()
        ),
    )


def render(runs: Sequence[Run], page: storage.Place) -> str:
    """Return the page about the runs; its links are relative to the folder of `page`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["text"] = tables.text
    compared = [claim for run in runs for claim in run.summary.get("claims", [])]
    return environment.get_template(TEMPLATE).render(
        runs=runs,
        compared=len(compared),
        agree=sum(claim["verdict"] == claims.AGREES for claim in compared),
        link=lambda run, file: _link(run.path / file, page.parent),
    )


def write(paths: Iterable[str | os.PathLike[str]], page: str | os.PathLike[str]) -> storage.Place:
    """Write the page about the finished runs in `paths` atomically; return the page's path.

    Raises:
      ValueError: there is no finished run in a path.
      CheckpointError: a file of a run is damaged, or the page cannot be written.
    """
    runs = [gather(path.absolute()) for path in find(paths)]
    where = storage.place(page).absolute()
    storage.make_folder(where.parent)
    storage.write_bytes(where, render(runs, where).encode())
    return where


def _link(file: storage.Place, folder: storage.Place) -> str:
    """Return a link from `folder` to `file`; it is relative if both are in storage of one kind."""
    if type(file) is not type(folder):
        return str(file)
    return Path(os.path.relpath(file, folder)).as_posix()


def _embedded(path: storage.Place, stem: str) -> str:
    """Return a picture as a data URL: the SVG, which prints better, or the PNG if no SVG exists."""
    kind = next((kind for kind in KINDS if (path / f"{stem}.{kind}").exists()), "png")
    data = base64.b64encode(storage.read_bytes(path / f"{stem}.{kind}")).decode()
    return f"data:{KINDS[kind]};base64,{data}"
