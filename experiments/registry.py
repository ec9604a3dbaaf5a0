"""List the experiments by name, without importing their modules."""

import importlib
import types
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from slth_jax import checks


class Experiment(NamedTuple):
    """An experiment's module, and the sentences that its help and its report contain."""

    module: str
    shows: str  # the subject, for the list of experiments
    see: str  # how to read the figures
    presets: Mapping[str, str]  # per preset: the time on two CPU cores and the expected result


EXPERIMENTS = {
    "hidden-dim": Experiment(
        "experiments.paper.hidden_dim",
        "figure 4: error against the width of the random source",
        "The wider the random source, the smaller the error of its ticket. Left: targets drawn "
        "from the theory's distribution, whose fit agrees with the paper's. Right: the trained "
        "target. Training shrinks it, since the task can hardly be learned, so its errors start "
        "lower and fall faster. Both curves end at float32 rounding. The triangles are guaranteed "
        "errors of the first source's ticket, the crosses its measured errors; the line of means "
        "over all sources may lie above that ticket's guarantee.",
        {
            "quick": "20 sources: about half a minute; curves that fall from 0.5 to 1e-7",
            "paper": "100 sources: under a minute; fit of drawn targets near 0.7 exp(-0.06 n)",
            "sources": "three initialisations of the source: under a minute; Xavier stays flat",
        },
    ),
    "input-length": Experiment(
        "experiments.paper.input_length",
        "figure 5: error against the length of the input",
        "A ticket is applied to inputs of growing length. The curves stay flat: the error does not "
        "grow with the length, and the wider source has the lower error.",
        {
            "quick": "20 sources, up to 2,048 tokens: about a minute; flat curves",
            "paper": "100 sources, up to 8,192 tokens: several minutes; flat curves",
        },
    ),
    "blocks": Experiment(
        "experiments.paper.blocks",
        "figure 6: error against width, transformers of 1 to 4 blocks",
        "Each further block makes the error larger; the dashed lines fall at one common rate. "
        "Beyond a width of about 100 rounding limits the error.",
        {
            "quick": "10 sources, 3 blocks: half a minute; too few sources to compare the rates",
            "paper": "100 sources, 4 blocks: about a minute; one rate near 0.05 serves",
        },
    ),
    "bounds": Experiment(
        "experiments.guarantees.bounds",
        "guaranteed against measured error: input length, input bound, depth at random",
        "Guarantees lie above the measured errors everywhere. They follow the input bound, hardly "
        "depend on the input length, and grow faster with depth than the errors do.",
        {
            "quick": "360 tickets: about a minute; no error above its bound",
            "paper": "10,080 tickets: about ten minutes; no error above its bound",
        },
    ),
    "width-law": Experiment(
        "experiments.law.width_law",
        "the law of widths: least width for an error, against d, heads and the construction",
        "Each halving of the error costs about one more hidden unit per input coordinate: right of "
        "the grey edge the points follow the line of slope 1.",
        {
            "quick": "four small shapes: about two minutes; a slope near one unit per bit",
            "paper": "twelve shapes, two rules and targets: half an hour; the numbers of law.md",
        },
    ),
    "trained-target": Experiment(
        "experiments.trained_target.trained_target",
        "a trained network as the target; --weights FILE for a published one",
        "Left: the share of questions that the ticket answers as the network does. Right: the "
        "largest error of an output row, with guarantees for all inputs and for these questions.",
        {
            "quick": "one source, a small network trained here: about a minute; accuracy 1 at the "
            "largest widths",
            "paper": "three sources, more widths: several minutes; the same",
        },
    ),
    "language": Experiment(
        "experiments.language.comparison",
        "figure 7: trained GPT-2s, their tickets, and scaled tickets",
        "Validation loss against the number of non-zero parameters: scaled tickets gain on plain "
        "tickets as the model widens. Only the preset tuned tries several rates per method.",
        {
            "tiny": "one size and seed: one to two minutes; shows that everything runs",
            "quick": "four widths, five seeds: 30 to 40 minutes; scaling helps from width 128 on",
            "tuned": "three widths, each method at the best of three rates: about an hour; losses "
            "by parameters and by bytes",
            "paper": "the paper's sizes: accelerators only; --dry-run estimates hours and memory",
        },
    ),
    "weight-scale": Experiment(
        "experiments.language.weight_scale",
        "figure 8: loss of GPT-2's tickets against a weight scale",
        "Validation loss against the factor of the query and key weights; the dashed line is the "
        "paper's factor.",
        {
            "quick": "five scales, eight seeds: 15 to 25 minutes; lowest loss near a factor of 2.8",
            "tiny": "three scales, two seeds: two minutes; losses near 2.5, after too few steps to "
            "compare the scales",
            "paper": "the paper's sizes: accelerators only; --dry-run estimates hours and memory",
        },
    ),
}

REPRODUCE = ("hidden-dim", "input-length", "blocks")
"""The experiments of `reproduce`: figures 4, 5 and 6 of the paper."""

NEEDS = ("matplotlib", "rich", "scipy")
"""Additional libraries that a run needs; the list, the help and estimates work without them."""

EXTRAS = 'pip install "slth-jax[experiments]"'


def load(name: str) -> types.ModuleType:
    """Import the module of the experiment `name`.

    Raises:
      ValueError: there is no experiment of this name.
    """
    checks.choice("experiment", name, EXPERIMENTS)
    return importlib.import_module(EXPERIMENTS[name].module)


def require(name: str, libraries: Sequence[str] = NEEDS) -> None:
    """Refuse to run `name` if a library of the extra `experiments` is missing.

    Raises:
      ModuleNotFoundError: a library is missing; the message names it and the command that installs
        it, in one line.
    """
    for library in libraries:
        try:
            importlib.import_module(library)
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f"{name} needs {error.name}: {EXTRAS}") from error
