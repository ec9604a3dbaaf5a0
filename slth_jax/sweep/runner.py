"""`run` a trial at every point of a grid with every seed, and `load` what a folder holds."""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from slth_jax import checks
from slth_jax.distributed import on_first, until_sigterm
from slth_jax.storage import CheckpointError
from slth_jax.sweep import store
from slth_jax.sweep.compute import OnStart, Progress, check_metrics, compute
from slth_jax.sweep.config import describe
from slth_jax.sweep.grid import seeds_of
from slth_jax.sweep.plan import continued, make_plan
from slth_jax.sweep.program import Program, Record, Trial, default_mesh
from slth_jax.sweep.results import Results
from slth_jax.sweep.store import Store

_log = logging.getLogger("slth_jax.sweep")


def run(
    trial: Trial,
    *,
    seeds: int | np.integer | Iterable[int | np.integer],
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
    progress: Progress | None = None,
    on_start: OnStart | None = None,
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
      seeds: how many (0, 1, ...), or the integers themselves, in [0, 2^32). A sweep in `out` goes
        on with more seeds behind those that it has: their trials are added, nothing else changes.
      grid: values by name, of which every combination is run, or the points themselves. In
        `hparams` a number or boolean is a traced scalar; anything else is static.
      static: names that the trial gets as plain Python values: one compilation a combination.
      padded: names of sizes, integers >= 1. The trial gets `hparams[name]`, a traced int32, and
        `hparams[name + '_max']`, a Python int >= it, by which it shapes its arrays; its result
        must not depend on the latter.
      buckets: the padded sizes: None for 8, 32, 128, 512, ...; 'largest' for one program at the
        largest size; the sizes themselves; or one of these a name. Fewer sizes, fewer compilations.
      out: a folder to keep results in and to resume from; None keeps them in memory. It records
        what the sweep is with its first finished chunk: a call that fails before binds nobody.
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
      on_start: called with the numbers of the trials whose computation begins (`Results.trials`),
        on the first process.

    Returns:
      The results of the trials of this call and of those that were finished before it.

    Raises:
      ValueError: an argument that cannot be used, or a trial that returns something else.
      CheckpointError: `out` holds another sweep, is in use, or cannot be written to.
      SystemExit: with status 143 after SIGTERM, where `out` is given and this is the main thread.
        Finished chunks are safe, the one being computed is abandoned.
    """
    index, count = checks.shard(shard)
    numbers = seeds_of(seeds)
    before = None if out is None else on_first(lambda: store.recorded(out))
    held = continued(numbers, None if before is None else before["plan"])
    plan = make_plan(
        seeds=numbers,
        grid=grid,
        static=static,
        padded=padded,
        buckets=buckets,
        chunk=held["chunk"] if chunk is None else chunk,
        batch=held["batch"] if batch is None else batch,
        portions=held["portions"],
    )
    mine = [chunk.number for chunk in plan.chunks if chunk.number % count == index]
    if count > len(plan.chunks):
        _log.warning(
            "%d shards, but only %d chunks: shards from %d on have nothing to do; a smaller chunk "
            "than %d trials would share the work",
            *(count, len(plan.chunks), len(plan.chunks), plan.recipe["chunk"]),
        )
    mesh = default_mesh() if mesh is None else mesh
    programs = [Program(trial, plan, group, mesh) for group in range(len(plan.groups))]
    check_metrics(programs, plan)
    if out is None:
        return compute(plan, programs, mine, progress=progress, on_start=on_start)
    kept = Store(out, plan, describe(trial, plan, programs, config), shard)
    with kept.claim(), until_sigterm() as check_stop:
        results = compute(
            plan,
            programs,
            mine,
            store=kept,
            finished=on_first(lambda: kept.finished(mine)),
            progress=progress,
            on_start=on_start,
            check_stop=check_stop,
        )
        on_first(lambda: _write_table(kept, results))
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
    folders = (out, *more)
    # A shard that had nothing to do has recorded nothing.
    configs = {folder: store.recorded(folder) for folder in folders}
    begun = {folder: config for folder, config in configs.items() if config is not None}
    config = max(
        begun.values() or [store.read_config(out)], key=lambda c: len(c["plan"]["portions"])
    )
    plan = make_plan(**config["plan"])
    holder: dict[int, Store] = {}
    for folder in begun:
        kept = Store(folder, plan, config)
        kept.folder.compare()
        kept.check_table()
        for chunk in plan.chunks:
            if kept.has(chunk.number):
                holder.setdefault(chunk.number, kept)

    def read(number: int) -> Record:
        return holder[number].read(number)

    metrics = {number: read(number)["metrics"] for number in holder}
    results = Results(plan, metrics, read, config["programs"])
    if results.missing and not partial:
        todo = f"{results.missing} of {plan.size} trials"
        raise CheckpointError(f"{out} lacks {todo}: run the sweep again, or load with partial=True")
    return results


def _write_table(kept: Store, results: Results) -> None:
    """Write the table once every chunk exists, those of other shards and added seeds too."""
    config = kept.folder.recorded()
    if config is None:
        return
    plan = make_plan(**config["plan"])
    if all(kept.has(chunk.number) for chunk in plan.chunks):
        complete = results.finished and plan.recipe == kept.plan.recipe
        kept.write_table((results if complete else load(kept.folder.path)).table())
