"""A case, and the verdict on it."""

import dataclasses
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from slth_jax.storage import CheckpointError

Outputs = Callable[[], Any]
TOLERANCE = 2e-4  # of the largest output, or of 1: float32 in another order of summation


@dataclasses.dataclass(frozen=True)
class Case:
    """A network or layer that is read.

    Attributes:
      name: the network in words.
      make: writes it into an empty folder; returns our outputs and its maker's, as functions.
      tolerance: the largest difference of a network that is read, in units of the largest output.
    """

    name: str
    make: Callable[[Path], tuple[Outputs, Outputs]]
    tolerance: float = TOLERANCE


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The verdict on a case.

    Attributes:
      name: the network in words.
      kind: 'read', 'refused', or a fault: 'other outputs', 'trace', 'lines'.
      difference: the largest difference of a network that is read, in units of the largest output
        of its maker or of 1.
      line: the line of a refusal, or the fault.
    """

    name: str
    kind: str
    difference: float | None = None
    line: str = ""

    @property
    def fault(self) -> bool:
        """Return whether the network was neither read right nor refused in one line."""
        return self.kind not in ("read", "refused")


def judge(case: Case, folder: Path) -> Verdict:
    """Return the verdict on a case, written into the empty folder."""
    ours, makers = case.make(folder)
    try:
        outputs = np.asarray(ours(), np.float64)
    except (ValueError, CheckpointError) as error:
        line = str(error).replace(f"{folder}/", "").replace(str(folder), "FOLDER")
        if not line or "\n" in line or not line.isprintable() or len(line) > 600:
            return Verdict(case.name, "lines", line=line[:600])
        return Verdict(case.name, "refused", line=line)
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(frame.filename).name}:{frame.lineno}"
        return Verdict(case.name, "trace", line=f"{type(error).__name__} at {place}: {error}"[:300])
    try:
        expected = np.asarray(makers(), np.float64)
    except Exception as error:  # the maker's library raises errors of many types
        line = f"read, though its maker raises {type(error).__name__}: {error}"
        return Verdict(case.name, "other outputs", line=" ".join(line[:300].split()))
    if outputs.shape != expected.shape:
        line = f"outputs of shape {outputs.shape}, its maker's are {expected.shape}"
        return Verdict(case.name, "other outputs", line=line)
    scale = max(1.0, float(np.max(np.abs(expected), initial=0)))
    difference = float(np.max(np.abs(outputs - expected), initial=0)) / scale
    if not difference <= case.tolerance:  # NaN too
        return Verdict(case.name, "other outputs", difference, "other outputs than its maker's")
    return Verdict(case.name, "read", difference)
