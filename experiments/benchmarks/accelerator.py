"""Check that a GPU or TPU computes the same results as the CPU, and measure its speed.

    python -m experiments.benchmarks.accelerator --out DIR

*Parity*: the accelerator and the host's CPU solve the same problems. The masks of both devices must
be equal bit for bit, and the largest difference between their outputs must be at most `TOLERANCE`.
*Speed*: the number of subset sums solved per second is compared with the number that the device's
measured memory bandwidth allows. The time of an edge-popup step is compared with the time of a step
that trains all weights of the same model. The command writes `accelerator.json` and
`accelerator.md`. On a machine without an accelerator the command compares the CPU with itself, on
small problems.
"""

from experiments.benchmarks import edge_popup, subset_sum  # first: sets JAX's environment

# isort: split
import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import machine
from experiments.language.model import Model
from slth_jax import attention, construction, initializers, storage, supermask
from slth_jax import subset_sum as sums

# The outputs are near 1. Each device computes them by a softmax and some hundred float32 products.
TOLERANCE = 1e-5


class Preset(NamedTuple):
    """The problem sizes and the number of repetitions of a measurement."""

    samples: int
    instances: int
    copied: int  # words of 4 bytes that are copied to measure the memory bandwidth
    model: Model
    rows: int
    rounds: int


PRESETS = {
    "quick": Preset(12, 256, 2**22, edge_popup.SMALL, 2, 3),
    "full": Preset(20, 2**16, 2**27, edge_popup.LARGE, 64, 9),
}


def parity(preset: Preset) -> list[dict[str, Any]]:
    """Compute everything on accelerator and CPU; return a dict of differences per computation."""
    samples, value = subset_sum.draw(preset.instances, preset.samples)
    draw = initializers.theory_attention
    shape: dict[str, Any] = {"num_heads": 2, "d_in": 4, "d_out": 4}
    target = draw(jax.random.key(0), n_k=4, n_v=4, **shape)
    wide = {"n_k": 4 * preset.samples, "n_v": 4 * preset.samples, **shape}
    source, scores, x = jax.device_get(
        (
            draw(jax.random.key(1), **wide),
            jax.random.normal(jax.random.key(2), (64, preset.instances)),
            jax.random.normal(jax.random.key(3), (64, 4)),
        )
    )

    def ticket() -> Any:
        return construction.apply_masks(source, construction.prune_attention(source, target))

    return [
        _equal("source weights", lambda: draw(jax.random.key(1), **wide)),
        _equal("masks of subset sums", lambda: sums.solve(samples, value).mask),
        _equal("masks of a ticket", lambda: construction.prune_attention(source, target)),
        _equal("masks of scores", lambda: supermask.from_scores(jnp.asarray(scores), 0.3)),
        _close("outputs of a ticket", lambda: attention.apply(ticket(), x)),
    ]


def _on_both(compute: Callable[[], Any]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Call `compute` on JAX's default device and on the host's CPU; return both results."""
    on_device = jax.tree.leaves(jax.device_get(compute()))
    # If the first device is a CPU, None lets the second call reuse the compiled program.
    cpu = None if jax.default_backend() == "cpu" else jax.local_devices(backend="cpu")[0]
    with jax.default_device(cpu):
        return on_device, jax.tree.leaves(jax.device_get(compute()))


def _equal(what: str, compute: Callable[[], Any]) -> dict[str, Any]:
    on_device, on_cpu = _on_both(compute)
    differ = sum(int(np.sum(a != b)) for a, b in zip(on_device, on_cpu, strict=True))
    size = sum(a.size for a in on_device)
    difference = f"{differ} of {size} entries differ"
    return {"what": what, "measured": difference, "reference": "none", "passes": differ == 0}


def _close(what: str, compute: Callable[[], Any]) -> dict[str, Any]:
    on_device, on_cpu = _on_both(compute)
    far = max(float(np.max(np.abs(a - b))) for a, b in zip(on_device, on_cpu, strict=True))
    return {
        "what": what,
        "measured": f"differ by {far:.2g}",
        "reference": f"at most {TOLERANCE:g}",
        "passes": far <= TOLERANCE,
    }


def speed(preset: Preset) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Measure speeds; return the rows of a table (as dicts), and a dict of unrounded numbers."""
    limit = subset_sum.bandwidth(preset.samples, copied=preset.copied, batch=preset.instances)
    allowed, bytes_a_second = limit["unfused_limit"], limit["gigabytes_per_second"]
    tokens = edge_popup.draw_tokens(preset.model, preset.rows)
    steps: dict[str, Callable[[np.ndarray], Any]] = {
        "masked": edge_popup.Runner(preset.model),
        "dense": edge_popup.Runner(preset.model, dense=True),
    }
    seconds = edge_popup.paired(steps, tokens, preset.rounds)
    masked, dense = edge_popup.table(seconds, "masked", tokens[:, 1:].size)
    rows = [
        {
            "what": f"subset sums of {preset.samples} samples a second",
            "measured": f"{limit['instances_per_second']:.4g}",
            "reference": f"{allowed:.4g} by a copy's {bytes_a_second:.3g} GB/s",
        },
        {
            "what": f"training step, {preset.model.num_parameters / 1e6:.3g} M parameters",
            "measured": f"{masked['milliseconds']:.4g} ms masked",
            "reference": f"{dense['milliseconds']:.4g} ms dense",
        },
        {
            "what": "masked step over dense step",
            "measured": f"{dense['ours_over_this']:.3g}",
            "reference": "1 if masks cost nothing",
        },
        {
            "what": "tokens a second in training",
            "measured": f"{masked['tokens_per_second']:.4g} masked",
            "reference": f"{dense['tokens_per_second']:.4g} dense",
        },
    ]
    return rows, {"bandwidth": limit, "steps": [masked, dense]}


def table(rows: list[dict[str, Any]]) -> str:
    """Return a Markdown table in which each dict of `rows` is a row."""
    lines = ["| | measured | reference | |", "| --- | --- | --- | --- |"]
    for row in rows:
        verdict = {True: "passes", False: "FAILS", None: ""}[row.get("passes")]
        lines.append(f"| {row['what']} | {row['measured']} | {row['reference']} | {verdict} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return 1 if the accelerator's results differ from the CPU's, else 0."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.accelerator",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("results/accelerator"))
    parser.add_argument("--preset", choices=PRESETS, help="default: quick on a CPU, else full")
    options = parser.parse_args(arguments)
    name = options.preset or ("quick" if jax.default_backend() == "cpu" else "full")
    out = storage.make_folder(options.out)
    checked = parity(PRESETS[name])
    measured, numbers = speed(PRESETS[name])
    rows = checked + measured
    result = {"preset": name, **machine.report(), "tolerance": TOLERANCE, "rows": rows, **numbers}
    storage.write_json(out / "accelerator.json", result)
    heading = f"{result['device']}, {result['date']}, jax {result['versions']['jax']}\n\n"
    storage.write_bytes(out / "accelerator.md", (heading + table(rows)).encode())
    print(heading + table(rows))
    print(f"written to {out}/accelerator.json, .md")
    return 0 if all(row["passes"] for row in checked) else 1


if __name__ == "__main__":
    raise SystemExit(main())
