"""The experiments by name: a row each, so that they can be listed without importing any."""

import importlib
import types
from collections.abc import Sequence
from typing import NamedTuple

from slth_jax import checks


class Experiment(NamedTuple):
    """Where an experiment is, and what it shows."""

    module: str
    shows: str


EXPERIMENTS = {
    "hidden-dim": Experiment(
        "experiments.paper.hidden_dim", "figure 4: error against the width of the random source"
    ),
    "input-length": Experiment(
        "experiments.paper.input_length", "figure 5: error against the length of the input"
    ),
    "blocks": Experiment(
        "experiments.paper.blocks", "figure 6: error against width, transformers of 1 to 4 blocks"
    ),
    "bounds": Experiment(
        "experiments.guarantees.bounds",
        "guaranteed against measured error: input length, input bound, depth at random",
    ),
    "width-law": Experiment(
        "experiments.law.width_law",
        "the law of widths: least width for an error, against d, heads and the construction",
    ),
    "trained-target": Experiment(
        "experiments.trained_target.trained_target",
        "a trained network as the target; --weights FILE for a published one",
    ),
    "language": Experiment(
        "experiments.language.comparison",
        "figure 7: trained GPT-2s, their tickets, and scaled tickets",
    ),
    "weight-scale": Experiment(
        "experiments.language.weight_scale",
        "figure 8: loss of GPT-2's tickets against a weight scale",
    ),
}

REPRODUCE = ("hidden-dim", "input-length", "blocks")
"""What `reproduce` runs by default: figures 4, 5 and 6 of the paper."""

NEEDS = ("matplotlib", "rich", "scipy")
"""What a run loads beyond the library; names, help and estimates do without."""

EXTRAS = 'pip install "slth-jax[experiments]"'


def load(name: str) -> types.ModuleType:
    """Import the module of the experiment `name`.

    Raises:
      ValueError: no such experiment.
    """
    checks.choice("experiment", name, EXPERIMENTS)
    return importlib.import_module(EXPERIMENTS[name].module)


def require(name: str, libraries: Sequence[str] = NEEDS) -> None:
    """Refuse what `name` says where a library of the extra `experiments` is missing.

    Raises:
      ModuleNotFoundError: one line that says which, and how to get it.
    """
    for library in libraries:
        try:
            importlib.import_module(library)
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f"{name} needs {error.name}: {EXTRAS}") from error
