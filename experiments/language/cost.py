"""The cost of training a language model: parameters, memory, operations, hours."""

import math
from collections.abc import Sequence

from experiments import machine
from experiments.language import training
from experiments.language.job import Job, Run
from experiments.language.model import Model
from slth_jax import supermask
from slth_jax.cli.memory import peak_bytes
from slth_jax.models.settings import vector_shapes

# Dense bfloat16 peak in 1e12 operations a second, and memory in GB, from the makers' data sheets.
ACCELERATORS = {
    "T4 (Colab)": (65, 16),
    "L4": (121, 24),
    "A100 80 GB": (312, 80),
    "H100 SXM": (989, 80),
    "TPU v5e": (197, 16),
    "TPU v6e": (918, 32),
}
UTILISATION = 0.4
"""Share of the peak that is assumed; well-tuned runs of this kind reach 0.3 to 0.5."""

SHARE_HERE = 0.2
"""Share of the speed of large products that is assumed for small models on this machine."""


def num_nonzero(model: Model, keep: float) -> int:
    """Return the number of parameters of a ticket that are not zero (figure 7's abscissa).

    Kept entries of the masked matrices, all entries of learned ones, and the gains.
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
    """Return the operations of a training step per token, forward and backward.

    ``6 (12 b d^2 + v d) + 6 b d t``: six per weight of a matrix product, the embedding counted once
    as the output layer, and causal attention's two products at half of the t x t pairs. Masks add
    a few dozen comparisons per weight and *step*, nothing per token.
    """
    shape = model.settings
    b, d = shape.num_blocks, shape.width
    return 6 * (12 * b * d**2 + shape.vocab_size * d) + 6 * b * d * length


def memory(job: Job) -> float:
    """Return an estimate of the bytes that one run needs on one device.

    Weights, scores and two moments in float32, a gradient, masked parameters in the compute
    dtype; the activations of one part of the batch (of one block, with remat), and its logits
    twice.
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
    """Return lines on the cost of runs on a machine such as 'v5e:2x2', compiled for it."""
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
    """Return lines on the cost of `runs` runs of a job."""
    tokens = job.schedule.steps * job.rows * job.length
    flops = flops_per_token(job.model, job.length) * tokens
    count = job.model.num_parameters
    kept = count if job.dense else num_nonzero(job.model, keep)
    seconds = runs * flops / (machine.products_per_second(dtype=job.dtype) * SHARE_HERE)
    num_gib = (peak_bytes() + runs * memory(job)) / 2**30
    lines = [
        f"{name}: {count:,} parameters, {kept:,} not zero, {memory(job) / 1e9:.2f} GB a run",
        f"  {tokens:.3g} tokens and {flops:.3g} floating-point operations a run, {runs} runs",
        f"  about {machine.duration(seconds)} and {num_gib:.1f} GiB of memory, all runs at once, "
        f"on this machine ({machine.device()}): an estimate from the speed of its products",
        f"  hours for all runs on one device at {UTILISATION:.0%} of its peak (estimated):",
    ]
    for device, (peak, size) in ACCELERATORS.items():
        hours = runs * flops / (peak * 1e12 * UTILISATION) / 3600
        fits = (
            ""
            if memory(job) < size * 1e9
            else f"  (needs more than {size} GB: shard or accumulate)"
        )
        lines.append(f"    {device:<12}{hours:>12,.2f}{fits}")
    return lines
