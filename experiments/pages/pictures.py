"""Plot all committed pictures from the committed results.

    python -m experiments.pages --pictures

The PNG file of every picture contains a mark: a text with the titles and labels of the picture and
the checksum of its results. A test plots every picture again and compares the marks, so the test
fails if a committed picture is older than its results or its labels.
"""

import hashlib
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from experiments import plots, registry
from experiments.benchmarks import bits, bits_stories, convolutions, edge_popup, hide, subset_sum
from experiments.benchmarks import sweep as sweep_benchmark
from experiments.language import plots as language
from experiments.law import plots_law, width_law
from experiments.pages.blocks import ROOT, place, read
from experiments.paper import blocks, pictures
from experiments.trained_target import trained_target

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Result = Mapping[str, Any]
KEYWORD = "Description"  # the name of the PNG text entry that contains the mark


class Picture(NamedTuple):
    """The name of a committed result, and the function that plots this result as a picture."""

    result: str
    draw: Callable[[Any], "Figure"]


def _config(run: Result) -> Any:
    """Return the settings with which a committed run was made."""
    return registry.load(run["experiment"]).PRESETS[run["preset"]]


def _series(run: Result, second: str) -> dict[tuple[Any, Any], list[Result]]:
    """Group the rows of a run by the pair of their entries `target` and `second`."""
    series: dict[tuple[Any, Any], list[Result]] = {}
    for row in run["rows"]:
        series.setdefault((row["target"], row[second]), []).append(row)
    return series


def _figure_4(run: Result) -> "Figure":
    return pictures.hidden_dim(_config(run), _series(run, "source"), run)


def _figure_5(run: Result) -> "Figure":
    return pictures.input_length(_config(run), _series(run, "width"))


def _figure_6(run: Result) -> "Figure":
    return pictures.blocks(_config(run).seeds, run["rows"], run["fit"], blocks.PAPER_RANGE)


def _steps(run: Result) -> "Figure":
    return edge_popup.picture(run["rows"], f"{run['what']}, {run['device']}")


PICTURES = {
    "figures/hidden_dim": Picture("hidden_dim", _figure_4),
    "figures/bend": Picture("hidden_dim", lambda run: pictures.bend(run["bend"])),
    "figures/input_length": Picture("input_length", _figure_5),
    "figures/blocks": Picture("blocks", _figure_6),
    "figures/trained_target": Picture(
        "trained_target", lambda run: trained_target.picture(run["task"], run["rows"])
    ),
    "figures/width_law": Picture(
        "width_law", lambda run: width_law.law_figure(run["widths"], run["laws"])
    ),
    "figures/constructions": Picture("width_law_curves", lambda run: plots_law.rivals(run["rows"])),
    "figures/transition": Picture(
        "width_law_curves", lambda run: plots_law.transition(run["transition"])
    ),
    "benchmarks/results/bits": Picture("bits", lambda run: bits.picture(run["rows"])),
    "benchmarks/results/bits_stories": Picture(
        "bits_stories", lambda run: bits_stories.picture(run["rows"])
    ),
    "benchmarks/results/convolutions": Picture(
        "convolutions",
        lambda run: convolutions.picture(run["accuracy"], run["preset"]["networks"]),
    ),
    "benchmarks/results/edge_popup_step": Picture("edge_popup_step", _steps),
    "benchmarks/results/edge_popup_seeds": Picture("edge_popup_seeds", _steps),
    "benchmarks/results/hide_stories": Picture(
        "hide_stories", lambda run: hide.picture(run["rows"])
    ),
    "benchmarks/results/language_quick": Picture(
        "language_quick", lambda run: language.against_size(run["rows"])
    ),
    "benchmarks/results/language_tuned": Picture(
        "language_tuned", lambda run: language.against_size(run["rows"])
    ),
    "benchmarks/results/language_bytes": Picture(
        "language_tuned", lambda run: language.against_bytes(run["bytes"])
    ),
    "benchmarks/results/weight_scale_quick": Picture(
        "weight_scale_quick",
        lambda run: language.against_scale(run["rows"], run["unigram_entropy"]),
    ),
    "benchmarks/results/subset_sum": Picture(
        "subset_sum", lambda run: subset_sum.picture(run["rows"], run["batches"])
    ),
    "benchmarks/results/sweep": Picture("sweep", sweep_benchmark.picture),
}
"""The pictures by their place in `experiments/`, without the ending ``.png``."""


def file(name: str) -> Path:
    """Return the path of a picture's PNG file."""
    return ROOT / "experiments" / f"{name}.png"


def drawn(name: str) -> tuple["Figure", str]:
    """Plot a picture; return the figure and its mark (labels, and the checksum of its results)."""
    picture = PICTURES[name]
    figure = picture.draw(read(picture.result))
    checksum = hashlib.sha256(place(picture.result).read_bytes()).hexdigest()
    return figure, f"{plots.caption(figure)}. Results {checksum[:16]}"


def mark(name: str) -> str:
    """Return the mark (labels and checksum) in a picture's file; '' if the file has none."""
    from PIL import Image

    with Image.open(file(name)) as image:
        return str(image.info.get(KEYWORD, ""))


def draw_all() -> list[Path]:
    """Plot all pictures, write those with changed labels or results, and return their paths."""
    written = []
    for name in PICTURES:
        figure, new = drawn(name)
        if not file(name).exists() or mark(name) != new:
            content = io.BytesIO()
            figure.savefig(
                content, format="png", dpi=160, bbox_inches="tight", metadata={KEYWORD: new}
            )
            file(name).write_bytes(content.getvalue())
            written.append(file(name))
    return written
