"""Define the settings that all runs of a program share, and the settings of a single run."""

import dataclasses
from typing import NamedTuple

from experiments.language.model import Model
from slth_jax import checks, edge_popup


class Run(NamedTuple):
    """The settings that may differ between runs of one program."""

    method: str
    seed: int
    qk_scale: float
    keep: float
    learning_rate: float

    @property
    def name(self) -> str:
        """Return the run's name in files and messages."""
        return f"{self.method}-scale{self.qk_scale:.4g}-rate{self.learning_rate:g}-seed{self.seed}"

    @property
    def words(self) -> str:
        """Describe the run for messages; include the settings that may make the run fail."""
        return (
            f"run {self.method} with seed {self.seed} (learning_rate={self.learning_rate:g}, "
            f"keep={self.keep:g}, qk_scale={self.qk_scale:g})"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """Settings of batches, evaluations and precision.

    Attributes:
      rows: the number of sequences per batch.
      length: the number of input tokens per sequence.
      eval_rows: the number of validation windows, 0 for all; the last windows are left out if they
        do not fill a part of a batch.
      chunk: steps between evaluations; a checkpoint is saved after each evaluation.
      accumulate: the number of parts into which a batch is divided to save memory; their gradients
        are averaged.
      dtype: the dtype of the matrix products, 'float32' or 'bfloat16'.
      remat: whether to recompute blocks in the backward pass, which saves memory.
      mesh: numbers of devices along the axes 'run', 'data' and 'model'; empty to split the runs
        among the devices first, then the batch rows.
      bits: numbers of bits per weight (16 is float16); for each number, the loss of a trained model
        is measured after its matrices are rounded to this number of bits.
    """

    rows: int = 16
    length: int = 64
    eval_rows: int = 512
    chunk: int = 100
    accumulate: int = 1
    dtype: str = "float32"
    remat: bool = False
    mesh: tuple[int, ...] = ()
    bits: tuple[int, ...] = (16, 8, 4)

    def __post_init__(self):
        checks.integer("rows", self.rows, low=1)
        checks.integer("length", self.length, low=1)
        checks.integer("eval_rows", self.eval_rows, low=0)
        checks.integer("chunk", self.chunk, low=1)
        checks.choice("dtype", self.dtype, ("float32", "bfloat16"))
        if self.rows % checks.integer("accumulate", self.accumulate, low=1):
            raise checks.fail("accumulate", f"a divisor of rows = {self.rows}", self.accumulate)
        for number in self.bits:
            checks.integer("bits", number, low=2, high=16)
        if self.mesh and len(self.mesh) != 3:
            raise checks.fail("mesh", "three numbers: run, data, model", self.mesh)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job(Work):
    """The settings that all runs of a program share.

    Attributes:
      model: the network, and the choice of parameters that are trained.
      schedule: the number of steps, the learning rates and the weight decay.
      variant: the form of edge-popup.
      dense: whether all weights are trained, without masks.
    """

    model: Model
    schedule: edge_popup.Schedule
    variant: edge_popup.Variant
    dense: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.length > self.model.settings.max_length:
            allowed = f"at most the model's max_length = {self.model.settings.max_length}"
            raise checks.fail("length", allowed, self.length)
