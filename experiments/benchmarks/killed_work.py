"""Define the runs that `experiments.benchmarks.kills` starts as separate processes and kills.

    python -m experiments.benchmarks.killed_work NAME OUT INPUTS [DISTRIBUTED]

The dictionary `WORK` contains every run under its name. A run writes into the folder OUT and reads
the folder INPUTS, which `write_inputs` creates. A run creates the file ``OUT.begun`` after its
imports; `kills` waits for this file. If a run has several processes, DISTRIBUTED contains the
coordinator's address and the process's index (`slth_jax.distributed.joined`).
"""

import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHUNK = 32  # trials that a sweep saves together
MODEL, TOKENS = "model.bin", "tokens.npy"


def write_inputs(inputs: Path, model: Path | None = None) -> None:
    """Write a random language model (or a copy of `model`), and the tokens that it is run on."""
    import numpy as np

    from experiments.fuzz.trained_models import LENGTH, VOCABULARY, write_llama2c

    inputs.mkdir(parents=True)
    if model is None:
        write_llama2c(inputs)
    else:
        (inputs / MODEL).write_bytes(model.read_bytes())
    tokens = np.arange(2 * LENGTH).reshape(2, LENGTH) % VOCABULARY
    np.save(inputs / TOKENS, tokens.astype(np.int32))


def trial(key, hparams):
    """Return two metrics and a mask of random walks; a trial takes only milliseconds."""
    import jax
    import jax.numpy as jnp

    def step(_, walk):
        return jnp.sin(3 * walk) + hparams["drift"]

    walk = jax.lax.fori_loop(0, 3000, step, jax.random.normal(key, (50,)))
    return {"mean": jnp.mean(walk), "most": jnp.max(walk)}, {"mask": walk > 0.5}


def run_sweep(out: Path, inputs: Path) -> None:
    """Run a sweep of 640 trials; append the numbers of the trials that begin to ``OUT.log``."""
    import jax

    from slth_jax import sweep

    def note(trials: list[int]) -> None:
        if jax.process_index() == 0:
            with open(_beside(out, "log"), "a") as file:
                file.write(json.dumps(trials) + "\n")

    grid = {"drift": [index / 50 for index in range(20)]}
    sweep.run(trial, seeds=32, grid=grid, out=out, chunk=CHUNK, on_start=note)


def begun_trials(out: Path) -> list[int]:
    """Return the numbers of the trials that began, in order; a repeated trial occurs repeatedly."""
    log = _beside(out, "log")
    lines = log.read_text().splitlines() if log.exists() else []
    return [trial for line in lines for trial in json.loads(line)]


def run_fit(out: Path, inputs: Path) -> None:
    """Train eight masks of a network (two values of `keep`, four seeds); write ``OUT.npz``."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from slth_jax import distributed, edge_popup

    def draw(key):
        a, b = jax.random.split(key)
        return {"w1": jax.random.normal(a, (16, 128)), "w2": jax.random.normal(b, (128, 4))}

    def loss(params, batch):
        x, y = batch
        return jnp.mean((jax.nn.relu(x @ params["w1"]) @ params["w2"] - y) ** 2)

    def batches(step):
        x = jax.random.normal(jax.random.fold_in(jax.random.key(1), step), (256, 16))
        return x, jnp.sin(x[:, :4])

    schedule = edge_popup.Schedule(steps=200)
    training = edge_popup.Training(200, schedule.optimizer(0.05), evaluate_every=20)
    key = jax.random.key(0)
    fits = edge_popup.fit(
        key, draw, loss, batches, training=training, keep=[0.3, 0.6], seeds=4, out=out
    )
    arrays: dict[str, Any] = {
        f"{i} {name}": distributed.whole(mask)
        for i, fit in enumerate(fits)
        for name, mask in fit.masks.items()
    }
    losses = np.array([fit.best_loss for fit in fits])
    if jax.process_index() == 0:
        with open(_beside(out, "npz"), "wb") as file:
            np.savez(file, losses=losses, **arrays)


def run_hide(out: Path, inputs: Path) -> None:
    """Run the command `slth-jax hide`, which hides a language model and compares the logits."""
    from slth_jax.cli import main

    samples = "16" if (inputs / MODEL).stat().st_size < 1 << 16 else "8"
    command = ["hide", str(inputs / MODEL), "--out", str(out), "--samples", samples, "--quiet"]
    _expect_zero(main([*command, "--inputs", str(inputs / TOKENS)]))


def run_figure_4(out: Path, inputs: Path) -> None:
    """Run figure 4 (preset quick) with a single drawn target and a shorter training."""
    from experiments.__main__ import main

    smaller = ["--set", "targets=1", "--set", "epochs=1"]
    _expect_zero(main(["hidden-dim", "--out", str(out), "--quiet", *smaller]))


def _expect_zero(status: int) -> None:
    if status:
        raise RuntimeError(f"the command ended with status {status}")


def _beside(out: Path, suffix: str) -> Path:
    return out.with_name(f"{out.name}.{suffix}")


def _digest_sweep(out: Path) -> str:
    from slth_jax import sweep

    results, digest = sweep.load(out), hashlib.sha256()
    for index in range(len(results)):
        digest.update(json.dumps(results.row(index)).encode())
        digest.update(results.arrays(index)["mask"].tobytes())
    digest.update((out / "table.csv").read_bytes())
    return digest.hexdigest()


def _digest_files(*patterns: str) -> Callable[[Path], str]:
    """Return a function that hashes the names and contents of files that match `patterns`."""

    def digest(out: Path) -> str:
        whole = hashlib.sha256()
        files = sorted(file for pattern in patterns for file in out.glob(pattern))
        for file in files:
            whole.update(f"{file.relative_to(out)}\n".encode() + file.read_bytes())
        assert files
        return whole.hexdigest()

    return digest


def _digest_fit(out: Path) -> str:
    return hashlib.sha256(_beside(out, "npz").read_bytes()).hexdigest()


def _digest_hide(out: Path) -> str:
    """Return a checksum of a ticket (arrays, options, source) and of the ticket's logits.

    The ticket's metadata is left out, because it contains times.
    """
    import numpy as np

    from slth_jax import ticket

    opened = ticket.load(out / "ticket.safetensors")
    digest = hashlib.sha256(json.dumps(opened.options, sort_keys=True).encode())
    digest.update(f"{opened.seed} {opened.fingerprint}".encode())
    for name, bits in sorted(opened.bits.items()):
        digest.update(name.encode() + np.asarray(bits).tobytes())
    with np.load(out / "logits.npz") as logits:
        for name in sorted(logits):
            digest.update(logits[name].tobytes())
    return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class Work:
    """A run that `experiments.benchmarks.kills` interrupts.

    Attributes:
      run: the function that does the work; called as ``run(out, inputs)``.
      digest: the function that returns a checksum of the results in `out`.
      pieces: the glob pattern of the files in `out` that store parts of the results.
      drops: whether the run deletes these files when it no longer needs them.
      processes: the number of processes of the run.
    """

    run: Callable[[Path, Path], None]
    digest: Callable[[Path], str]
    pieces: str
    drops: bool = False
    processes: int = 1


WORK = {
    "sweep": Work(run_sweep, _digest_sweep, "chunks/*[0-9]"),
    "fit": Work(run_fit, _digest_fit, "checkpoints/step-*[0-9]", drops=True),
    "hide": Work(run_hide, _digest_hide, "parts/*.safetensors", drops=True),
    "figure 4": Work(
        run_figure_4,
        _digest_files("rows.jsonl", "*.png", "tickets/*"),  # an SVG contains the date of writing
        "checkpoints/chunks/*[0-9]",
    ),
}
# The results of two processes with one device each must be equal, bit for bit, to the results of
# one process with two devices.
WORK |= {
    f"{name} on two processes": dataclasses.replace(WORK[name], processes=2)
    for name in ("sweep", "fit")
}


def main(name: str, out: Path, inputs: Path, how: str = "off") -> int:
    """Do the run `name`; `how` is the argument DISTRIBUTED. Return the exit status."""
    from slth_jax import distributed
    from slth_jax.cli import outcome

    _beside(out, "begun").touch()

    def run() -> None:
        with distributed.joined(how, outcome.report):
            WORK[name].run(out, inputs)

    return outcome.run(run)


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:]))
