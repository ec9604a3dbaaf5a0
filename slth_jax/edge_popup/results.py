"""The results of `fit`: one `Fit` per run, and a table of all runs."""

import dataclasses
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

import jax
import numpy as np

from slth_jax.edge_popup.scores import Keep
from slth_jax.types import PyTree

_TIMING = "steps_per_second"  # the only measurement that differs between machines


@dataclasses.dataclass(frozen=True)
class Setting:
    """The choices by which a run of `fit` differs from the others.

    Attributes:
      method: 'edge-popup', or the name of a control whose weights are trained: 'dense' (without
        masks) or 'random' (under random masks).
      keep: the fraction of connections that is kept; 1 for a dense run.
      seed: the number of the seed, which is folded into the key of `fit` (unless `seeds` is None).
      hyperparameters: a dict from the name of each swept hyperparameter to its value.
    """

    method: str
    keep: Keep
    seed: int
    hyperparameters: Mapping[str, float]

    def __str__(self) -> str:
        swept = "".join(f", {name} {value:g}" for name, value in self.hyperparameters.items())
        return f"the {self.method} run with keep {self.keep}{swept}, seed {self.seed}"


@dataclasses.dataclass(frozen=True, repr=False)
class Fit:
    """The result of one run of `fit`.

    Attributes:
      setting: method, keep, seed and swept hyperparameters.
      masks: the masks at the best evaluation: booleans in the tree of the parameters, with None for
        arrays without a mask. If the model is a Flax module, the masks are in nested dictionaries.
      ticket: source weights times masks, in the form in which the model was given: a tree of
        parameters, or a module. For a control run the trained weights replace the source weights.
      best_loss, best_step: the loss and the step of the best evaluation.
      log: one dict per evaluation. The keys of an entry are 'step', 'loss' (the mean training loss
        since the previous evaluation) and, if validation batches were given, 'validation' and the
        names of other measurements.
    """

    setting: Setting
    masks: PyTree
    ticket: Any
    best_loss: float
    best_step: int
    log: list[dict[str, float]]

    @property
    def row(self) -> dict[str, Any]:
        """A dict with the run's settings and the measurements of its best evaluation."""
        chosen = next((e for e in self.log if e["step"] == self.best_step), {})
        rest = {n: v for n, v in chosen.items() if n not in ("step", "loss", "validation")}
        fields = {"method": self.setting.method, "keep": self.setting.keep}
        fields |= {**self.setting.hyperparameters, "seed": self.setting.seed}
        return fields | {"loss": self.best_loss, "step": self.best_step} | rest

    def __repr__(self) -> str:
        kept = [np.asarray(mask) for mask in jax.tree.leaves(self.masks)]
        size, num = sum(m.size for m in kept), sum(int(m.sum()) for m in kept)
        return (
            f"Fit({self.setting.method}, best loss {self.best_loss:.4g} at step {self.best_step}, "
            f"{num:,} of {size:,} connections kept)"
        )


class Fits(Sequence[Fit]):
    """The results of all runs: first edge-popup, then the controls.

    Printing a `Fits` shows a table of means over seeds.
    """

    def __init__(self, fits: Sequence[Fit]):
        self._fits = tuple(fits)

    @overload
    def __getitem__(self, index: int) -> Fit: ...

    @overload
    def __getitem__(self, index: slice) -> "Fits": ...

    def __getitem__(self, index):
        return Fits(self._fits[index]) if isinstance(index, slice) else self._fits[index]

    def __len__(self) -> int:
        return len(self._fits)

    def __iter__(self) -> Iterator[Fit]:
        return iter(self._fits)

    def rows(self) -> list[dict[str, Any]]:
        """Return one dict of settings and measurements per run, ready for a data frame."""
        return [fit.row for fit in self._fits]

    def table(self) -> list[dict[str, Any]]:
        """Return one dict per setting: values, number of runs, (mean, sd) of each measurement."""
        groups: dict[str, list[dict[str, Any]]] = {}
        for fit in self._fits:
            same = dataclasses.replace(fit.setting, seed=0)
            groups.setdefault(str(same), []).append(fit.row)
        result = []
        for rows in groups.values():
            values = dict(rows[0])
            measured = list(values)[list(values).index("seed") + 1 :]
            shown = {n: values[n] for n in values if n not in ("seed", *measured)}
            shown["count"] = len(rows)
            for name in measured:
                column = [row[name] for row in rows]
                sd = statistics.stdev(column) if len(column) > 1 else float("nan")
                shown[name] = (statistics.fmean(column), sd)
            result.append(shown)
        return result

    def __repr__(self) -> str:
        table = self.table()
        if not table:
            return "Fits()"
        lines = [list(table[0])]
        for entry in table:
            lines.append([_text(value) for value in entry.values()])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(f"{cell:>{w}}" for cell, w in zip(line, widths, strict=True))
            for line in lines
        )


def log_of(log: Sequence[Mapping[str, Any]], run: int) -> list[dict[str, float]]:
    """Return the log of one run, without the values that differ between machines."""
    return [
        {name: value if name == "step" else value[run] for name, value in entry.items()}
        for entry in ({n: v for n, v in e.items() if n != _TIMING} for e in log)
    ]


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return f"{value[0]:.4g}" + ("" if value[1] != value[1] else f" ± {value[1]:.2g}")
    return f"{value:g}" if isinstance(value, float) else str(value)
