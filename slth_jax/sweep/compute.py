"""Run the programs of a sweep chunk by chunk; each chunk is saved before the next chunk begins."""

import time
from collections.abc import Callable, Sequence

import jax
import numpy as np

from slth_jax import checks
from slth_jax.sweep.draws import draws
from slth_jax.sweep.plan import Plan
from slth_jax.sweep.program import Program, Record, collect, join
from slth_jax.sweep.results import Results
from slth_jax.sweep.store import Store

Progress = Callable[[int, int], None]
OnStart = Callable[[list[int]], None]


def _nothing(*_: object) -> None:
    pass


def check_metrics(programs: Sequence[Program], plan: Plan) -> None:
    """Refuse metrics that differ between programs, or that have the name of another column."""
    first = programs[0].metrics
    for program in programs[1:]:
        if program.metrics != first:
            raise checks.fail("trial's metrics", f"{first} in every program", program.metrics)
    clash = sorted(first.keys() & {*plan.points[0], "seed"})
    if clash:
        raise checks.fail("trial's metrics", "named unlike the grid and 'seed'", clash)


def compute(
    plan: Plan,
    programs: Sequence[Program],
    numbers: Sequence[int],
    *,
    store: Store | None = None,
    finished: Sequence[int] = (),
    progress: Progress | None = None,
    on_start: OnStart | None = None,
    check_stop: Callable[[], None] = _nothing,
) -> Results:
    """Return the results of the chunks `numbers`: read the finished ones and compute the rest.

    Args:
      plan: the plan of the sweep.
      programs: one program for each group of trials in the plan.
      numbers: the numbers of the chunks that this call must return.
      store: the folder in which chunks are saved; None to keep chunks in memory.
      finished: the numbers of the chunks that are already complete in `store`.
      progress, on_start: see `sweep.run`.
      check_stop: a function that is called after each call of a program, and that may raise an
        error to stop the sweep.
    """
    if jax.process_index() > 0:
        progress = on_start = None
    specs = [program.spec() for program in programs]
    kept: dict[int, Record] = {}

    def read(number: int) -> Record:
        return kept[number] if store is None else store.read(number)

    def count(chunks: Sequence[int]) -> int:
        return sum(len(plan.chunks[number].trials) for number in chunks)

    metrics = {number: read(number)["metrics"] for number in finished}

    def report() -> None:
        if progress is not None:
            progress(count(list(metrics)), count(numbers))

    compile_seconds, begin = 0.0, time.perf_counter()
    finish: Callable[[], None] = _nothing
    missing = [number for number in numbers if number not in metrics]
    for number in missing:
        chunk = plan.chunks[number]
        program = programs[chunk.group]
        start = time.perf_counter()
        try:
            program.compile()  # runs while the previous chunk is being written
        finally:
            compile_seconds += time.perf_counter() - start
            finish()
        report()
        record = _chunk(program, chunk.trials, on_start or _nothing, check_stop)
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
        drawn=draws(),
        computed=count(missing),
        compile_seconds=compile_seconds,
        run_seconds=time.perf_counter() - begin - compile_seconds,
    )


def _chunk(
    program: Program, trials: np.ndarray, on_start: OnStart, check_stop: Callable[[], None]
) -> Record:
    """Compute one chunk; fetch the results of each call while the next call runs."""
    records, running = [], None
    for index in range(program.steps(trials)):
        part = program.part(trials, index)
        on_start(part.tolist())
        following = program.start(part)
        if running is not None:
            records.append(collect(running))
            check_stop()
        running = following
    assert running is not None  # a chunk has at least one trial
    records.append(collect(running))
    check_stop()
    return join(records)
