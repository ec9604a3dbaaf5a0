"""Training of many runs of one language model in one program: `edge_popup.train` fed with text."""

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from experiments.folder import RunFolder
from experiments.language import text
from experiments.language.job import Job, Run
from experiments.language.outcome import Outcome, rows_of, save_tickets
from slth_jax import checks, edge_popup, gpt2, machines, placement, storage, supermask
from slth_jax.distributed import on_first
from slth_jax.types import Array, Key, PyTree

_SHUFFLE = 1 << 22  # folded into a run's key


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
            rows = rows_of(job, runs, log)
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
    return Outcome(job, tuple(runs), rows_of(job, runs, log), best, shuffled)


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
    program = _program(job, len(runs), _mesh(job, len(runs), jax.devices()))
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
def _program(job: Job, count: int, mesh: Mesh) -> edge_popup.Program:
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
        mesh=mesh,
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


def compile_for(on: str, job: Job, count: int) -> machines.Report:
    """Compile the training steps between two evaluations of `count` runs for another machine.

    Its operations and times are those of `job.chunk` steps. See `machines.compile_for`.
    """

    def trace(devices: Sequence[Any]) -> Any:
        mesh = _mesh(job, count, devices)
        program = _program(job, count, mesh)
        batches = jax.ShapeDtypeStruct(
            (count, min(job.chunk, job.recipe.steps), job.rows, job.length + 1), jnp.int32
        )
        place = placement.of_batch(batches, mesh, runs=True, steps=True)
        batches = jax.ShapeDtypeStruct(batches.shape, batches.dtype, sharding=place)
        whole = NamedSharding(mesh, jax.P())
        number = jax.ShapeDtypeStruct((count,), jnp.float32, sharding=whole)
        return program.advance.trace(program.shapes, batches, edge_popup.Hparams(number, number))

    return machines.compile_for(on, trace)


def _mesh(job: Job, runs: int, available: Sequence[Any]) -> Mesh:
    devices = len(available)
    if job.mesh:
        sizes = tuple(checks.integer("mesh", size, low=1) for size in job.mesh)
        if math.prod(sizes) != devices:
            raise checks.fail("mesh", f"of {devices} devices in all", job.mesh)
    else:
        along_runs = math.gcd(runs, devices)
        along_rows = math.gcd(job.rows // job.accumulate, devices // along_runs)
        sizes = (along_runs, along_rows, devices // along_runs // along_rows)
    return machines.mesh_of(available, sizes, ("run", "data", "model"))


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


def train_in_groups(
    name: str,
    job: Job,
    runs: Sequence[Run],
    at_once: int,
    corpus: text.Corpus,
    out: RunFolder,
) -> list[Outcome]:
    """Train `runs`, `at_once` in one program (0 for all), and save their tickets.

    `name` tells this job's checkpoints and logs from those of others in the run's folder.
    """
    size = at_once or len(runs)
    logs = storage.make_folder(out.path / "logs")
    outcomes = []
    for begin in range(0, len(runs), size):
        group, part = runs[begin : begin + size], f"{name}-{begin}"
        with out.progress(f"{name}, {len(group)} of {len(runs)} runs") as update:
            outcome = train(
                job,
                group,
                corpus,
                out.checkpoints / part,
                log_file=logs / f"{part}.jsonl",
                progress=update,
            )
        save_tickets(outcome, out, prefix=f"{name}-")
        outcomes.append(outcome)
    return outcomes
