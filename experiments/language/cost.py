"""Estimate the cost of training a language model: parameters, memory, operations, time."""

import math
from collections.abc import Sequence

from experiments import machine
from experiments.language import training
from experiments.language.job import Job, Run
from experiments.language.model import Model
from slth_jax import supermask
from slth_jax.cli.memory import peak_bytes
from slth_jax.models.settings import vector_shapes

# Accelerators: peak speed of dense bfloat16 in 1e12 operations per second, and memory in GB, from
# data sheets.
ACCELERATORS = {
    "T4 (Colab)": (65, 16),
    "L4": (121, 24),
    "A100 80 GB": (312, 80),
    "H100 SXM": (989, 80),
    "TPU v5e": (197, 16),
    "TPU v6e": (918, 32),
}
UTILISATION = 0.4
"""The assumed share of an accelerator's peak; well-tuned training reaches 0.3 to 0.5."""

SHARE_HERE = 0.2
"""The assumed speed of small models on this machine, as a share of the speed of large products."""


def num_nonzero(model: Model, keep: float) -> int:
    """Return the number of non-zero parameters of a ticket (the horizontal axis of figure 7).

    The non-zero parameters are the kept entries of masked matrices, all entries of trained
    matrices, the gains and, if they are trained, the biases.
    """
    shapes = model.shapes
    total = 0
    for name, shape in shapes.items():
        size = math.prod(shape[-2:])
        masked = name in model.masked
        total += math.prod(shape[:-2]) * (supermask.num_kept(size, keep) if masked else size)
    for name, shape in vector_shapes(model.settings).items():
        if name.endswith("gain") or model.gains == "learned":
            total += math.prod(shape)
    return total


def flops_per_token(model: Model, length: int) -> float:
    """Return the operations per token in a training step, which is a forward and a backward pass.

    The number is ``6 (12 b d^2 + v d) + 6 b d t``: six operations per weight of a matrix product,
    and the two products of causal attention over half of the t x t pairs. The embedding, which is
    also the output layer, counts once. Masks add a few dozen comparisons per weight to each *step*,
    however many tokens the step has.
    """
    shape = model.settings
    b, d = shape.num_blocks, shape.width
    return 6 * (12 * b * d**2 + shape.vocab_size * d) + 6 * b * d * length


def memory(job: Job) -> float:
    """Return an estimate of the bytes that one run needs on one device.

    The estimate contains: weights, scores (for tickets), two moments and a gradient in float32;
    masked parameters in the compute dtype; the activations of one part of the batch in all blocks
    (with `remat`: the activations in one block, and the inputs of all blocks); and twice the logits
    of this part.
    """
    model = job.model.settings
    size = 2 if job.dtype == "bfloat16" else 4
    states = 3 if job.dense else 4
    parameters = job.model.num_parameters * (4 * states + 4 + size)
    tokens = job.rows // job.accumulate * job.length
    per_block = model.width * 16 * size + model.num_heads * job.length * (4 + size)
    kept = model.width * size * model.num_blocks if job.remat else 0
    blocks = 1 if job.remat else model.num_blocks
    logits = model.vocab_size * 4 * 2
    return parameters + tokens * (blocks * per_block + kept + logits)


def report_on(on: str, name: str, job: Job, runs: Sequence[Run]) -> list[str]:
    """Compile runs for a machine such as 'v5e:2x2'; return lines of text about the cost."""
    compiled, calls = training.compile_for(on, job, runs)
    steps = job.schedule.steps // calls
    lines = [f"{name}: {len(runs)} runs, {calls} calls of one program of {steps} steps"]
    lines += compiled.lines(
        "more parts of a batch (--set accumulate=N), recomputed blocks (--set remat=true), fewer "
        "runs at once (--set runs_at_once=N), or a mesh with devices along 'model' (--set mesh=)"
    )
    seconds = calls * compiled.seconds + compiled.compile_seconds
    return [*lines, f"  at least {machine.duration(seconds)} in all, without evaluations"]


def report(name: str, job: Job, runs: int, keep: float) -> list[str]:
    """Return lines of text about the cost of a job on this machine and on accelerators.

    Args:
      name: the name of the job.
      job: the settings that the runs share.
      runs: the number of runs.
      keep: the kept fraction of each matrix.
    """
    tokens = job.schedule.steps * job.rows * job.length
    flops = flops_per_token(job.model, job.length) * tokens
    count = job.model.num_parameters
    kept = count if job.dense else num_nonzero(job.model, keep)
    seconds = runs * flops / (machine.products_per_second(dtype=job.dtype) * SHARE_HERE)
    num_gib = (peak_bytes() + runs * memory(job)) / 2**30
    lines = [
        f"{name}: {count:,} parameters, {kept:,} not zero, {memory(job) / 1e9:.2f} GB per run",
        f"  {tokens:.3g} tokens and {flops:.3g} floating-point operations per run, {runs} runs",
        f"  about {machine.duration(seconds)} and {num_gib:.1f} GiB of memory, all runs at once, "
        f"on this machine ({machine.device()}): an estimate from the speed of its products",
    ]
    devices = {
        device: runs * flops / (peak * 1e12 * UTILISATION)
        for device, (peak, _) in ACCELERATORS.items()
    }
    if max(devices.values()) < 60:
        return [*lines, f"  less than a minute on each of {', '.join(devices)} (estimated)"]
    at = f"one device at {100 * UTILISATION:.0f} % of its peak (estimated)"
    lines.append(f"  time of all runs on {at}:")
    for device, needed in devices.items():
        size = ACCELERATORS[device][1]
        time = machine.duration(needed)
        fits = (
            ""
            if memory(job) < size * 1e9
            else f"  (needs more than {size} GB: shard or accumulate)"
        )
        lines.append(f"    {device:<12}{time:>14}{fits}")
    return lines
