"""`run` a trial at every point of a grid with every seed, and `load` what a folder holds."""

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jaxlib
from jax.sharding import Mesh

import slth_jax
from slth_jax import checks
from slth_jax.storage import CheckpointError
from slth_jax.sweep import grid as sweep_grid
from slth_jax.sweep import program as sweep_program
from slth_jax.sweep.grid import Plan
from slth_jax.sweep.hosts import on_first, until_sigterm
from slth_jax.sweep.program import Program, Record, Trial
from slth_jax.sweep.results import Results
from slth_jax.sweep.store import Store


def run(
    trial: Trial,
    *,
    seeds: int | Iterable[int],
    grid: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]],
    static: Sequence[str] = (),
    padded: Sequence[str] = (),
    buckets: Any = None,
    out: str | os.PathLike[str] | None = None,
    mesh: Mesh | None = None,
    chunk: int | None = None,
    batch: int | None = None,
    config: Mapping[str, Any] | None = None,
    shard: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Results:
    """Run `trial` at every point of `grid` with every seed; finish what was begun in `out`.

    A trial is a pure function `trial(key, hparams) -> metrics` or `-> (metrics, arrays)`. Its key
    is `jax.random.key(seed, impl='threefry2x32')`; metrics are scalars, or small arrays of a fixed
    shape, by name; arrays are any tree, such as masks (kept as one bit an entry). Trials are
    vmapped, sharded over the first axis of `mesh` and computed in chunks; each chunk is durable
    before the next one starts. A trial has the same result bits whatever the chunk it is in and
    the number of devices and of processes, on one kind of device and at one `batch`. (Between one
    device and several XLA may simplify an expression of the trial differently, such as
    ``x / sqrt(n)``; `jax.lax.optimization_barrier` around the divisor keeps it as it is.)

    Args:
      trial: must give a result that depends on its own key and hparams only.
      seeds: how many (0, 1, ...), or the integers themselves, in [0, 2^32).
      grid: values by name, of which every combination is run, or the points themselves. In
        `hparams` a number or boolean is a traced scalar; anything else is static.
      static: names that the trial gets as plain Python values: one compilation a combination.
      padded: names of sizes, integers >= 1. The trial gets `hparams[name]`, a traced int32, and
        `hparams[name + '_max']`, a Python int >= it, by which it shapes its arrays; its result
        must not depend on the latter.
      buckets: the padded sizes: None for 8, 32, 128, 512, ...; 'largest' for one program at the
        largest size; the sizes themselves; or one of these a name. Fewer sizes, fewer compilations.
      out: a folder to keep results in and to resume from; None keeps them in memory.
      mesh: None for one axis over every device of every process.
      chunk: trials that become durable together; None for 512 (more for very many trials). Give
        less for trials of seconds or minutes each: at most one chunk is computed again after a
        kill.
      batch: trials that a device computes at once; None for an eighth of a chunk, at most 64 (16
        on a CPU). Not chosen by the number of devices, so that results do not depend on it.
      config: anything else that the results depend on; recorded, and compared when resuming.
      shard: 'i/n' computes every n-th chunk from the i-th on (0 <= i < n), needing no other
        process. Shards may share `out`; `load` joins them.
      progress: called with (trials done, trials to do) at the start and after each chunk, on the
        first process.

    Returns:
      The results of the trials of this call and of those that were finished before it.

    Raises:
      ValueError: an argument that cannot be used, or a trial that returns something else.
      CheckpointError: `out` holds another sweep, is in use, or cannot be written to.
      SystemExit: with status 143 after SIGTERM, where `out` is given and this is the main thread.
        Finished chunks are safe, the one being computed is abandoned.
    """
    plan = sweep_grid.plan(
        seeds=seeds,
        grid=grid,
        static=static,
        padded=padded,
        buckets=buckets,
        chunk=chunk,
        batch=batch,
    )
    index, count = _shard(shard)
    numbers = [chunk.number for chunk in plan.chunks if chunk.number % count == index]
    mesh = sweep_program.default_mesh() if mesh is None else mesh
    programs = [Program(trial, plan, group, mesh) for group in range(len(plan.groups))]
    _check_metrics(programs, plan)
    if out is None:
        return _compute(plan, programs, numbers, progress)
    store = Store(out, (index, count))
    recorded = _config(trial, plan, programs, config)
    with contextlib.ExitStack() as stack:
        on_first(lambda: stack.enter_context(store.locked()))
        on_first(lambda: store.open(recorded))
        finished = on_first(lambda: store.finished(numbers))
        check_stop = stack.enter_context(until_sigterm())
        results = _compute(plan, programs, numbers, progress, store, finished, check_stop)
        on_first(lambda: _write_table(store, results))
    return results


def load(
    out: str | os.PathLike[str], *more: str | os.PathLike[str], partial: bool = False
) -> Results:
    """Return the results in a sweep's folder, joined with those of its shards in other folders.

    Args:
      out: the folder that `run` was given.
      more: folders of other shards of the same sweep.
      partial: return what is there of an unfinished sweep instead of raising.

    Raises:
      CheckpointError: a folder is no sweep's, is damaged or belongs to another sweep, or trials
        are missing and `partial` is not set.
    """
    stores = [Store(folder) for folder in (out, *more)]
    config = stores[0].read_config()
    plan = sweep_grid.plan(**config["plan"])
    holder: dict[int, Store] = {}
    for store in stores:
        store.compare(config)
        store.check_table()
        for chunk in plan.chunks:
            if store.has(chunk.number):
                holder.setdefault(chunk.number, store)
    specs = config["programs"]

    def read(number: int) -> Record:
        chunk = plan.chunks[number]
        return holder[number].read(number, specs[chunk.group], len(chunk.trials))

    results = Results(plan, {number: read(number)["metrics"] for number in holder}, read, specs)
    if results.missing and not partial:
        todo = f"{results.missing} of {plan.size} trials"
        raise CheckpointError(f"{out} lacks {todo}: run the sweep again, or load with partial=True")
    return results


def _compute(
    plan: Plan,
    programs: list[Program],
    numbers: list[int],
    progress: Callable[[int, int], None] | None,
    store: Store | None = None,
    finished: Sequence[int] = (),
    check_stop: Callable[[], None] = lambda: None,
) -> Results:
    """Read the finished chunks and compute the others, each durable before the next is begun."""
    specs = [program.spec() for program in programs]
    kept: dict[int, Record] = {}

    def read(number: int) -> Record:
        if store is None:
            return kept[number]
        chunk = plan.chunks[number]
        return store.read(number, specs[chunk.group], len(chunk.trials))

    metrics = {number: read(number)["metrics"] for number in finished}
    total = sum(len(plan.chunks[number].trials) for number in numbers)

    def report() -> None:
        if progress is not None and jax.process_index() == 0:
            progress(sum(len(plan.chunks[number].trials) for number in metrics), total)

    def nothing() -> None:
        pass

    compile_seconds, begin = 0.0, time.perf_counter()
    finish: Callable[[], None] = nothing
    for number in [number for number in numbers if number not in metrics]:
        chunk = plan.chunks[number]
        program = programs[chunk.group]
        start = time.perf_counter()
        try:
            program.compile()  # while the chunk before is being written
        finally:
            compile_seconds += time.perf_counter() - start
            finish()
        report()
        record = _chunk(program, chunk.trials, check_stop)
        if store is None:
            kept[number] = record
        else:
            finish = store.save(number, record)
        metrics[number] = record["metrics"]
    finish()
    report()
    return Results(
        plan,
        metrics,
        read,
        specs,
        compile_seconds=compile_seconds,
        run_seconds=time.perf_counter() - begin - compile_seconds,
    )


def _chunk(program: Program, trials: Any, check_stop: Callable[[], None]) -> Record:
    """Compute one chunk; the next step runs while the one before is fetched."""
    records, running = [], program.start(trials, 0)
    for index in range(1, program.steps(trials)):
        following = program.start(trials, index)
        records.append(sweep_program.collect(running))
        running = following
        check_stop()
    records.append(sweep_program.collect(running))
    check_stop()
    return sweep_program.join(records)


def _write_table(store: Store, results: Results) -> None:
    """Write the table once every chunk, of other shards too, is there."""
    if results.missing:
        results = load(store.out, partial=True)
    if not results.missing:
        store.write_table(results.table())


def _check_metrics(programs: list[Program], plan: Plan) -> None:
    """Refuse metrics that do not make one table."""
    first = programs[0].metrics
    for program in programs[1:]:
        if program.metrics != first:
            raise checks.fail("trial's metrics", f"{first} in every program", program.metrics)
    clash = sorted(first.keys() & {*plan.points[0], "seed"})
    if clash:
        raise checks.fail("trial's metrics", "named unlike the grid and 'seed'", clash)


def _config(trial: Trial, plan: Plan, programs: list[Program], config: Any) -> dict[str, Any]:
    """Return everything that a sweep's results depend on, and its trial's name for people."""
    device = jax.devices()[0]
    name = getattr(trial, "__qualname__", type(trial).__name__)
    return {
        "trial": f"{trial.__module__}.{name}",
        "config": dict(config or {}),
        "plan": plan.recipe,
        "versions": {
            "jax": jax.__version__,
            "jaxlib": jaxlib.__version__,
            "slth_jax": slth_jax.__version__,
            "platform": device.platform,
            "device": device.device_kind,
        },
        "programs": [program.spec() for program in programs],
    }


def _shard(shard: str | None) -> tuple[int, int]:
    """Return (i, n) of 'i/n'."""
    if shard is None:
        return 0, 1
    index, slash, count = str(shard).partition("/")
    if not (slash and index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise checks.fail("shard", "'i/n' with 0 <= i < n", repr(shard))
    return int(index), int(count)
