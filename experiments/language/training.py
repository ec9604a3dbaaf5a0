"""Train many runs of a language model in one program with `edge_popup.train`."""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from experiments.folder import RunFolder
from experiments.language import stored, text
from experiments.language.job import Job, Run
from experiments.language.model import Model, Params
from experiments.language.outcome import Outcome, rows_of, save_tickets
from slth_jax import checks, edge_popup, machines, models, placement, storage, supermask
from slth_jax.distributed import on_first, whole
from slth_jax.types import Array, Key, PyTree

# A call of the program cannot be interrupted, so a call is short enough to end within seconds after
# SIGTERM.
_TOKENS_PER_CALL = 1 << 20
_SHUFFLE = 1 << 22  # folded into a run's key to shuffle masks


def train(
    job: Job,
    runs: Sequence[Run],
    corpus: text.Corpus,
    folder: storage.Place,
    *,
    log_file: storage.Place | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Outcome:
    """Train `runs` together to the end; continue from a checkpoint in `folder` if there is one.

    After every `job.chunk` steps the runs are evaluated, logged and checkpointed, see
    `edge_popup.train`.

    Args:
      job: the settings that the runs share.
      runs: the settings of each run.
      corpus: the texts.
      folder: the folder of checkpoints.
      log_file: the file of the log, which has a line of JSON per run and evaluation; None for no
        file.
      progress: a function that is called with the number of finished steps and the number of all
        steps.

    Raises:
      ValueError: a loss became NaN or infinite; the message names the step and the run's settings.
        The last good checkpoint remains.
      SystemExit: with status 143, if SIGTERM arrived; the exception is raised after the state is
        saved.
    """
    group = together(job, runs, corpus)
    rows: list[dict[str, Any]] = []
    if log_file is not None and log_file.exists():  # an interrupted run
        rows = [json.loads(line) for line in log_file.read_text().splitlines()]

    def write(entries: Sequence[Mapping[str, Any]]) -> None:
        nonlocal rows
        rows = [row for row in rows if row["step"] < entries[0]["step"]]
        rows += rows_of(job, runs, entries)
        if log_file is not None:
            on_first(functools.partial(storage.write_rows, log_file, rows))

    def report(step: int, steps: int, entry: Mapping[str, Any]) -> None:
        write([entry])
        progress(step, steps)

    state, best, log = edge_popup.train(
        group,
        evaluate_every=job.chunk,
        evaluate_first=True,
        best_params=job.dense and bool(job.bits),  # needed only for rounding
        out=folder,
        # A checkpoint contains the learning rates, in the optimiser's state. Because the runs are
        # recorded here, a checkpoint with other rates is refused; otherwise its rates would
        # silently replace the rates of `runs`.
        config={"runs": storage.plain([run._asdict() for run in runs])},
        progress=report,
    )
    write(log)
    best = best._replace(masks=jax.tree.map(whole, best.masks))  # packed masks are small
    shuffled = np.full(len(runs), np.nan)
    if not job.dense:
        shuffled = group.evaluate(state, _shuffled(job, runs, best))["loss"]
    rounded = _rounded(job, group, state, best) if best.moving else {}
    return Outcome(job, tuple(runs), rows_of(job, runs, log), best, shuffled, rounded)


def together(job: Job, runs: Sequence[Run], corpus: text.Corpus) -> edge_popup.Runs:
    """Return `runs` as the group that `edge_popup.train` trains together.

    Raises:
      ValueError: a setting of the job or of a run is not allowed.
    """
    if corpus.vocab_size > job.model.settings.vocab_size:
        raise ValueError(
            f"vocab_size must be at least the tokenizer's {corpus.vocab_size}, "
            f"got {job.model.settings.vocab_size}"
        )
    for run in runs:
        checks.number("keep", run.keep, low=0, high=1, open_low=True)
        checks.number("learning_rate", run.learning_rate, low=0)
        checks.number("qk_scale", run.qk_scale)
        checks.integer("seed", run.seed, low=0, high=2**32 - 1)
    program = _program(job, len(runs))
    scales = jnp.array([run.qk_scale for run in runs], jnp.float32)

    def start() -> edge_popup.State:
        return program.stacked(lambda index: _start(job, runs[index]))

    return edge_popup.Runs(
        program,
        jnp.stack([_key(run) for run in runs]),
        jnp.array([run.keep for run in runs], jnp.float32),
        job.schedule.steps,
        start=start,
        batches=functools.partial(_batches, job, runs, corpus),
        validation=[_validation(job, corpus)],
        draw=lambda keys: _draw(keys, scales, job.model),
        stretch=_stretch(job, len(runs)),
        names=lambda index: runs[index].words,
    )


def compile_for(on: str, job: Job, runs: Sequence[Run]) -> tuple[machines.Report, int]:
    """Compile the training of `runs` for another machine; return a report and a number of calls.

    Args:
      on: the machine, see `machines.compile_for`.
      job: the settings of model and training.
      runs: the runs that train together.

    Returns:
      The report, and the number of calls of the program during the training.
    """
    report = machines.compile_for(on, lambda devices: trace(devices, job, runs))
    return report, job.schedule.steps // _stretch(job, len(runs))


def trace(devices: Sequence[Any], job: Job, runs: Sequence[Run]) -> Any:
    """Return the traced program of one call for `devices`, which this machine need not have."""
    program = _program(job, len(runs), tuple(devices))
    keys = jax.eval_shape(lambda: jnp.stack([_key(run) for run in runs]))
    shape = (len(runs), _stretch(job, len(runs)), job.rows, job.length + 1)
    return program.trace(keys, jax.ShapeDtypeStruct(shape, np.int32))


@functools.lru_cache(maxsize=8)
def _program(job: Job, count: int, devices: tuple[Any, ...] | None = None) -> edge_popup.Program:
    """Return the program that trains `count` runs of a job; it is cached by job and count."""

    def loss(params: Params, tokens: Array) -> Array:
        dtype = jnp.dtype(job.dtype)
        return models.loss(params, tokens, job.model.settings, dtype=dtype, remat=job.remat)

    run = Run("", 0, 1.0, 1.0, 0.0)
    return edge_popup.Program(
        edge_popup.Task(
            loss,
            job.schedule.optimizer(0.0),  # the optimiser's state contains each run's rate
            job.variant,
            lambda params, parts: jnp.mean(jax.lax.map(lambda rows: loss(params, rows), parts)),
            job.accumulate,
        ),
        count,
        mesh=_mesh(job, count, devices),
        shapes=jax.eval_shape(lambda: _stack([_start(job, run)] * count)),
    )


def _start(job: Job, run: Run) -> edge_popup.State:
    """Return the state of one run before the first step; this function is not compiled.

    Because this function is not compiled, the weights are drawn by the same program as when a
    ticket file is loaded, and are equal bit for bit.
    """
    weights, trainable = job.model.start(_key(run), job.variant, run.qk_scale)
    if job.dense:
        params = {**weights, **trainable.learned}
        weights, trainable = {}, edge_popup.Trainable({}, params)
    return edge_popup.start(weights, trainable, job.schedule.optimizer(run.learning_rate))


@functools.partial(jax.jit, static_argnums=2)
def _draw(keys: Key, scales: Array, model: Model) -> Params:
    """Draw new weights for all runs."""
    return jax.vmap(model.init)(keys, scales)


def _key(run: Run) -> Key:
    return jax.random.key(run.seed, impl="threefry2x32")


def _stack(trees: Sequence[PyTree]) -> PyTree:
    """Return one tree whose leaves are the stacked leaves of `trees`."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _mesh(job: Job, runs: int, devices: Sequence[Any] | None) -> Mesh:
    if not job.mesh:
        return placement.mesh_of_all(runs, job.rows // job.accumulate, devices)
    run, data, model = (checks.integer("mesh", size, low=1) for size in job.mesh)
    count = jax.device_count() if devices is None else len(devices)
    if run * data * model != count:
        raise checks.fail("mesh", f"of {count} devices in all", job.mesh)
    return placement.mesh((run, data, model), devices)


def _stretch(job: Job, runs: int) -> int:
    """Return the number of steps per call; this number divides `chunk`, so all calls are equal."""
    most = max(1, _TOKENS_PER_CALL // (runs * job.rows * job.length))
    return max(n for n in range(1, min(most, job.chunk) + 1) if job.chunk % n == 0)


def _validation(job: Job, corpus: text.Corpus) -> np.ndarray:
    """Return the tokens of the validation windows, `[part, row, length + 1]`."""
    tokens = text.windows(corpus.valid, rows=job.eval_rows, length=job.length)
    rows = min(len(tokens), job.rows // job.accumulate)
    whole = len(tokens) // rows * rows
    return tokens[:whole].reshape(-1, rows, tokens.shape[1])


def _shuffled(job: Job, runs: Sequence[Run], best: edge_popup.Best) -> dict[str, Array]:
    """Return each run's best masks after the entries of each matrix are put in random order."""
    shapes = job.model.shapes
    rows = []
    for index, run in enumerate(runs):
        masks = {
            name: supermask.unpack(bits[index], shapes[name]) for name, bits in best.masks.items()
        }
        rows.append(edge_popup.shuffled(jax.random.fold_in(_key(run), _SHUFFLE), masks))
    return _stack(rows)


def _rounded(
    job: Job, group: edge_popup.Runs, state: edge_popup.State, best: edge_popup.Best
) -> dict[int, np.ndarray]:
    """Return, for each number of bits, the validation losses of models with rounded matrices.

    Gains and biases are rounded to float16.
    """
    trainable = best.moving["trainable"]

    def loss(bits: int) -> np.ndarray:
        learned = {
            name: stored.rounded(value, bits if name in job.model.shapes else 16)
            for name, value in trainable.learned.items()
        }
        changed = state._replace(trainable=trainable._replace(learned=learned))
        return group.evaluate(changed)["loss"]

    return {bits: loss(bits) for bits in job.bits}


def _batches(
    job: Job, runs: Sequence[Run], corpus: text.Corpus, begin: int, end: int
) -> np.ndarray:
    """Return the batches of the steps `begin` to `end - 1`, `[run, step, row, length + 1]`."""
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
    """Train `runs` in groups, and save their tickets.

    Args:
      name: the prefix of the names of this job's checkpoints, logs and tickets.
      job: the settings that the runs share.
      runs: the settings of each run.
      at_once: the number of runs per group; 0 for a single group.
      corpus: the texts.
      out: the folder of the experiment's run.
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
