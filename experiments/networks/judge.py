"""Define cases, and reach a verdict on a case."""

import dataclasses
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from slth_jax.storage import CheckpointError

Outputs = Callable[[], Any]
# The tolerance, relative to max(1, largest output): float32 sums depend on the order of summation.
TOLERANCE = 2e-4


@dataclasses.dataclass(frozen=True)
class Case:
    """A network or layer, which this library should read or refuse.

    Attributes:
      name: a description of the network.
      make: the function that writes the network into an empty folder and returns two functions; the
        first computes this library's outputs, the second computes the original library's outputs.
      tolerance: the largest accepted difference of outputs, divided by max(1, largest output).
    """

    name: str
    make: Callable[[Path], tuple[Outputs, Outputs]]
    tolerance: float = TOLERANCE


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The verdict on a case.

    Attributes:
      name: the name of the case.
      kind: 'read', 'refused', or a fault: 'other outputs', 'trace' (an unexpected exception) or
        'lines' (a message that is not one printable line of at most 600 characters).
      difference: the largest difference of outputs, divided by max(1, largest output of the
        original library); None if no outputs were compared.
      line: the error message of a refusal, or a description of the fault.
    """

    name: str
    kind: str
    difference: float | None = None
    line: str = ""

    @property
    def fault(self) -> bool:
        """Whether the network was neither read correctly nor refused with a one-line message."""
        return self.kind not in ("read", "refused")


def judge(case: Case, folder: Path) -> Verdict:
    """Write a case into an empty folder and return the verdict on it."""
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
    except Exception as error:  # the original library raises errors of many types
        line = f"read, though its maker raises {type(error).__name__}: {error}"
        return Verdict(case.name, "other outputs", line=" ".join(line[:300].split()))
    if outputs.shape != expected.shape:
        line = f"outputs of shape {outputs.shape}, its maker's are {expected.shape}"
        return Verdict(case.name, "other outputs", line=line)
    scale = max(1.0, float(np.max(np.abs(expected), initial=0)))
    difference = float(np.max(np.abs(outputs - expected), initial=0)) / scale
    if not difference <= case.tolerance:  # true if NaN, too
        return Verdict(case.name, "other outputs", difference, "other outputs than its maker's")
    return Verdict(case.name, "read", difference)
