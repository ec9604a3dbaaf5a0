"""Training of many runs of one language model in one program: `edge_popup.train` fed with text."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh

from experiments import text
from experiments.training_job import Job, Run
from slth_jax import checks, edge_popup, gpt2, storage, supermask, ticket
from slth_jax.hosts import on_first
from slth_jax.types import Array, Key, PyTree

__all__ = ["Job", "Outcome", "Run", "save_tickets", "together", "train"]

_SHUFFLE = 1 << 22  # folded into a run's key


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a group of runs came to.

    Attributes:
      job: what the runs share.
      runs: in the order of the arrays below.
      log: rows of measurements, one per run and evaluation, the first before any step.
      best: best validation loss and its step per run, and the masks at that step.
      shuffled: validation loss of the best masks with each matrix's entries in random order; NaN
        for dense training.
    """

    job: Job
    runs: tuple[Run, ...]
    log: list[dict[str, Any]]
    best: edge_popup.Best
    shuffled: np.ndarray

    def last(self, index: int, name: str = "val_loss") -> float:
        """Return the last logged value of a run."""
        return self._values(index, name)[-1]

    def first(self, index: int, name: str = "val_loss") -> float:
        """Return the value before training: of a ticket, the loss under a random mask."""
        return self._values(index, name)[0]

    def kept(self, index: int) -> dict[str, float]:
        """Return the fraction of each matrix that a run's best masks keep."""
        shapes = gpt2.matrix_shapes(self.job.model)
        return {
            name: int(np.bitwise_count(np.asarray(bits[index])).sum()) / math.prod(shapes[name])
            for name, bits in self.best.masks.items()
        }

    def measurement(self, index: int) -> dict[str, Any]:
        """Return a run's row for ``rows.jsonl``: its settings and what it came to."""
        loss = float(self.best.loss[index])
        row = self.runs[index]._asdict() | {
            "loss": loss,
            "perplexity": math.exp(min(loss, 700.0)),
            "best_step": int(self.best.step[index]),
            "last_loss": self.last(index),
            "tokens_per_second": self.tokens_per_second(),
        }
        if not self.job.dense:
            row["random_mask"] = self.first(index)
            row["shuffled_mask"] = float(self.shuffled[index])
            row["kept"] = self.kept(index)
        return row

    def tokens_per_second(self) -> float | None:
        """Return the median speed of all runs together, compilation left out."""
        speeds = [row["tokens_per_second"] for row in self.log if row["tokens_per_second"]]
        return float(np.median(speeds)) * len(self.runs) if speeds else None

    def _values(self, index: int, name: str) -> list[float]:
        return [row[name] for row in self.log if row["run"] == index]


def train(
    job: Job,
    runs: Sequence[Run],
    corpus: text.Corpus,
    folder: Path,
    *,
    log_file: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Outcome:
    """Train `runs` together to the end, from the last good checkpoint in `folder` if there is one.

    After every `job.chunk` steps the runs are evaluated, logged and checkpointed, see
    `edge_popup.train`. `log_file` is kept up to date with the log, a row of JSON per run and
    evaluation.

    Raises:
      ValueError: a loss became NaN or infinite; the line names the step and the run's settings.
        The last good checkpoint stays.
      SystemExit: 143, after SIGTERM, once the state is saved.
    """
    group = together(job, runs, corpus)

    def told(step: int, steps: int, log: list[dict[str, Any]]) -> None:
        if log_file is not None:
            rows = _rows(job, runs, log)
            on_first(functools.partial(storage.write_rows, log_file, rows))
        progress(step, steps)

    state, best, log = edge_popup.train(
        group,
        evaluate_every=job.chunk,
        evaluate_first=True,
        best_params=False,  # nobody asks for them; of a dense model they are all of it
        out=folder,
        progress=told,
    )
    shuffled = np.full(len(runs), np.nan)
    if not job.dense:
        shuffled = group.evaluate(state, _shuffled(job, runs, best))
    return Outcome(job, tuple(runs), _rows(job, runs, log), best, shuffled)


def together(job: Job, runs: Sequence[Run], corpus: text.Corpus) -> edge_popup.Runs:
    """Return `runs` of a job on the texts, ready for `edge_popup.train`.

    Raises:
      ValueError: settings that no run can have.
    """
    if corpus.vocab_size > job.model.vocab_size:
        raise ValueError(
            f"vocab_size must be at least the tokenizer's {corpus.vocab_size}, "
            f"got {job.model.vocab_size}"
        )
    for run in runs:
        checks.number("keep", run.keep, low=0, high=1, open_low=True)
        checks.number("learning_rate", run.learning_rate, low=0)
        checks.number("qk_scale", run.qk_scale)
        checks.integer("seed", run.seed, low=0, high=2**32 - 1)
    program = _program(job, len(runs))
    scales = jnp.array([run.qk_scale for run in runs], jnp.float32)

    def start() -> edge_popup.State:
        return program.place(_stack([_start(job, _key(run), run.qk_scale) for run in runs]))

    return edge_popup.Runs(
        program,
        edge_popup.Hparams(
            jnp.array([run.keep for run in runs], jnp.float32),
            jnp.array([run.learning_rate for run in runs], jnp.float32),
        ),
        jnp.stack([_key(run) for run in runs]),
        start=start,
        batches=functools.partial(_batches, job, runs, corpus),
        validation=[_validation(job, corpus)],
        draw=lambda keys: _draw(keys, scales, job.model),
        names=lambda index: runs[index].words,
    )


@functools.lru_cache(maxsize=8)
def _program(job: Job, count: int) -> edge_popup.Program:
    """Return the program of `count` runs of a job, the same one for every group of runs."""

    def loss(params: gpt2.Params, tokens: Array) -> Array:
        return gpt2.loss(params, tokens, job.model, dtype=jnp.dtype(job.dtype), remat=job.remat)

    key = jax.random.key(0, impl="threefry2x32")
    return edge_popup.Program(
        loss,
        job.recipe,
        job.variant,
        measure=lambda params, parts: jnp.mean(jax.lax.map(lambda rows: loss(params, rows), parts)),
        accumulate=job.accumulate,
        runs=count,
        mesh=_mesh(job, count),
        shapes=jax.eval_shape(lambda: _stack([_start(job, key, 1.0)] * count)),
    )


def _start(job: Job, key: Key, qk_scale: float) -> edge_popup.State:
    """Return the state of one run before the first step; not compiled as a whole.

    A ticket's recipe draws its weights with the very program that is used here.
    """
    weights, trainable = gpt2.start(key, job.model, qk_scale=qk_scale, variant=job.variant)
    if job.dense:
        params = {**weights, **trainable.learned}
        weights, trainable = {}, edge_popup.Trainable({}, params)
    return edge_popup.start(weights, trainable, job.recipe)


@functools.partial(jax.jit, static_argnums=2)
def _draw(keys: Key, scales: Array, model: gpt2.Config) -> gpt2.Params:
    """Return fresh weights of all runs."""
    return jax.vmap(lambda key, scale: gpt2.init(key, model, qk_scale=scale))(keys, scales)


def _key(run: Run) -> Key:
    return jax.random.key(run.seed, impl="threefry2x32")


def _stack(trees: Sequence[PyTree]) -> PyTree:
    """Return one tree with a first axis over `trees`."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _mesh(job: Job, runs: int) -> Mesh:
    devices = jax.device_count()
    if job.mesh:
        sizes = tuple(checks.integer("mesh", size, low=1) for size in job.mesh)
        if math.prod(sizes) != devices:
            raise checks.fail("mesh", f"of {devices} devices in all", job.mesh)
    else:
        along_runs = math.gcd(runs, devices)
        along_rows = math.gcd(job.rows // job.accumulate, devices // along_runs)
        sizes = (along_runs, along_rows, devices // along_runs // along_rows)
    return jax.make_mesh(sizes, ("run", "data", "model"), axis_types=(AxisType.Auto,) * 3)


def _validation(job: Job, corpus: text.Corpus) -> np.ndarray:
    """Return the windows that losses are measured on, `[part, row, length + 1]`."""
    tokens = text.windows(corpus.valid, rows=job.eval_rows, length=job.length)
    rows = min(len(tokens), job.rows // job.accumulate)
    whole = len(tokens) // rows * rows
    return tokens[:whole].reshape(-1, rows, tokens.shape[1])


def _shuffled(job: Job, runs: Sequence[Run], best: edge_popup.Best) -> dict[str, Array]:
    """Return each run's best masks with entries in random order."""
    shapes = gpt2.matrix_shapes(job.model)
    rows = []
    for index, run in enumerate(runs):
        masks = {
            name: supermask.unpack(bits[index], shapes[name]) for name, bits in best.masks.items()
        }
        rows.append(edge_popup.shuffled(jax.random.fold_in(_key(run), _SHUFFLE), masks))
    return _stack(rows)


def save_tickets(outcome: Outcome, folder: Path, *, prefix: str = "") -> int:
    """Write each run's best mask as ``PREFIXNAME.ticket.safetensors``; return how many.

    None where a ticket is not source times mask alone: dense training, learned parameters, or
    weights that were re-drawn.
    """
    job = outcome.job
    if job.dense or job.variant.redraw_every or gpt2.learned_names(job.model):
        return 0

    def write() -> int:
        for index, run in enumerate(outcome.runs):
            shapes = gpt2.matrix_shapes(job.model)
            kept = {
                name: supermask.unpack(bits[index], shapes[name])
                for name, bits in outcome.best.masks.items()
            }
            found = ticket.create(
                "gpt2",
                {"qk_scale": run.qk_scale, **_plain(job.model)},
                run.seed,
                kept,
                metadata={
                    "method": run.method,
                    "keep": run.keep,
                    "step": int(outcome.best.step[index]),
                    "val_loss": float(outcome.best.loss[index]),
                    "versions": f"jax {jax.__version__}",
                },
            )
            ticket.save(folder / f"{prefix}{run.name}{ticket.SUFFIX}", found, overwrite=True)
        return len(outcome.runs)

    return on_first(write)


def _plain(model: gpt2.Config) -> dict[str, Any]:
    fields = dataclasses.asdict(model)
    return {name: value for name, value in fields.items() if value is not None}


def _batches(
    job: Job, runs: Sequence[Run], corpus: text.Corpus, begin: int, end: int
) -> np.ndarray:
    """Return the batches of steps `begin` to `end`, `[run, step, row, length + 1]`."""
    by_seed = {
        seed: np.stack(
            [
                text.batch(corpus.train, seed=seed, step=step, rows=job.rows, length=job.length)
                for step in range(begin, end)
            ]
        )
        for seed in {run.seed for run in runs}
    }
    return np.stack([by_seed[run.seed] for run in runs])


def _rows(job: Job, runs: Sequence[Run], log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row per run and evaluation of the loop's log."""
    rows = []
    for entry in log:
        pace = entry.get("steps_per_second")
        for index, run in enumerate(runs):
            loss = entry["validation"][index]
            rows.append(
                {
                    "run": index,
                    **run._asdict(),
                    "step": entry["step"],
                    "val_loss": loss,
                    "perplexity": math.exp(min(loss, 700.0)),
                    "train_loss": entry["loss"][index] if "loss" in entry else None,
                    "tokens_per_second": pace and pace * job.rows * job.length,
                }
            )
    return rows
