"""`run` runs a trial at every grid point with every seed; `load` reads a folder's results."""

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypedDict, Unpack

import jax
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


class Work(TypedDict, total=False):
    """Options of `run` that divide the work and show progress; results do not depend on them."""

    chunk: int | None
    batch: int | None
    shard: str | None
    progress: Progress | None
    on_start: OnStart | None


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
    config: Mapping[str, Any] | None = None,
    **work: Unpack[Work],
) -> Results:
    """Run `trial` at every point of `grid` with every seed, or finish the sweep in `out`.

    A trial is a pure function `trial(key, hparams) -> metrics` or `-> (metrics, arrays)`. Its key
    is `jax.random.key(seed, impl='threefry2x32')`. `metrics` is a dict from name to a scalar or to
    a small array of fixed shape. `arrays` is any tree of arrays, such as masks (which are stored as
    one bit per entry). Trials are vmapped, sharded over the first axis of `mesh` and computed in
    chunks. Each chunk is saved before the next chunk starts.

    On the same kind of device and with the same `batch`, a trial's result has the same bits for
    every chunk and every number of devices and processes. (XLA may simplify an expression of the
    trial, such as ``x / sqrt(n)``, differently for one device than for several devices;
    `jax.lax.optimization_barrier` around the divisor prevents this.)

    Args:
      trial: the trial, whose result must depend on `key` and `hparams` only.
      seeds: the number of seeds (0, 1, ...), or a list of integers in [0, 2^32). A sweep in `out`
        can be continued with a list that has more seeds at the end. Their trials are added, and
        nothing else changes.
      grid: a dict from name to list of values, whose combinations are all run; or a list of points.
        In `hparams` a number or boolean is a traced scalar; any other value is static.
      static: the names of values that the trial receives as plain Python; each combination of them
        is compiled separately.
      padded: the names of sizes, which are integers >= 1. The trial receives the traced int32
        `hparams[name]` and the padded size `hparams[name + '_max']`, a Python int that is at least
        as large. The trial must use the padded size in the shapes of its arrays. The trial's result
        must not depend on the padded size.
      buckets: the padded sizes: None for 8, 32, 128, 512, ...; 'largest' for one program at the
        largest size; a list of sizes; or a dict from name to such a value. Each padded size is
        compiled separately.
      out: a folder for the results, on this machine or in a bucket (gs://, s3://), from which a
        stopped sweep is resumed; None to keep the results in memory. Other sweeps cannot use the
        folder once the first chunk is finished.
      mesh: a mesh of devices; None for all devices of all processes along one axis.
      config: any other values that the results depend on, which JSON can store. They are saved, and
        must be equal when the sweep is resumed.
      **work: options that divide the work and show its progress.

        - ``chunk``: the number of trials that are saved together; None for 512 (more for very many
          trials). At most one chunk is computed again after a kill, so choose fewer if a trial
          takes seconds or minutes.
        - ``batch``: the number of trials that a device computes at once; None for an eighth of a
          chunk, at most 64 (16 on a CPU). The last bits of results depend on the batch, so it is
          chosen without regard to the number of devices.
        - ``shard``: 'i/n' computes every n-th chunk from the i-th on (0 <= i < n) and needs no
          other process. Shards may share `out`; `load` joins them.
        - ``progress``: called with (trials done, trials to do) at the start and after each chunk,
          on the first process.
        - ``on_start``: called with the numbers of the trials whose computation begins
          (`Results.trials`), on the first process.

    Returns:
      The results of the trials of this call, whether computed now or read from `out`.

    Raises:
      ValueError: an argument cannot be used, or the trial does not return a dict of named metrics.
      CheckpointError: `out` belongs to another sweep, is in use, or cannot be written to.
      SystemExit: with status 143, after SIGTERM, if `out` is given and this is the main thread.
        Finished chunks are kept; the current chunk is abandoned.
    """
    unknown = sorted(work.keys() - Work.__annotations__.keys())
    if unknown:
        raise TypeError(f"run() got an unexpected keyword argument {unknown[0]!r}")
    shard, progress, on_start = work.get("shard"), work.get("progress"), work.get("on_start")
    index, count = checks.shard(shard)
    checks.function("trial", trial)
    numbers = seeds_of(seeds)
    before = None if out is None else on_first(lambda: store.recorded(out))
    earlier = continued(numbers, None if before is None else before["plan"])
    plan = make_plan(
        seeds=numbers,
        grid=grid,
        static=static,
        padded=padded,
        buckets=buckets,
        chunk=earlier["chunk"] if work.get("chunk") is None else work["chunk"],
        batch=earlier["batch"] if work.get("batch") is None else work["batch"],
        portions=earlier["portions"],
    )
    mine = [chunk.number for chunk in plan.chunks if chunk.number % count == index]
    if count > len(plan.chunks):
        _log.warning(
            "%d shards, but only %d chunks: shards from %d on have nothing to do; a smaller chunk "
            "than %d trials would share the work",
            *(count, len(plan.chunks), len(plan.chunks), plan.recipe["chunk"]),
        )
    with _no_context_mesh():
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


@contextlib.contextmanager
def _no_context_mesh() -> Iterator[None]:
    """Disable a mesh of `jax.set_mesh`, since a sweep takes its mesh as an argument."""
    if jax.sharding.get_abstract_mesh().empty:
        yield
    else:
        with jax.set_mesh(Mesh(np.empty((), object), ())):
            yield


def load(
    out: str | os.PathLike[str], *more: str | os.PathLike[str], partial: bool = False
) -> Results:
    """Return the results in a sweep's folder, joined with the sweep's shards in other folders.

    Args:
      out: the folder that was passed to `run` as `out`.
      more: folders of other shards of the same sweep.
      partial: if true and the sweep is unfinished, its finished trials are returned and no error is
        raised.

    Raises:
      CheckpointError: a folder has no sweep, is damaged or belongs to another sweep, or trials are
        missing and `partial` is False.
    """
    folders = (out, *more)
    # The folder of a shard without any chunk has no configuration.
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
        for number in sorted(kept.existing()):
            holder.setdefault(number, kept)

    def read(number: int) -> Record:
        return holder[number].read(number)

    metrics = {number: read(number)["metrics"] for number in holder}
    results = Results(plan, metrics, read, config["programs"], drawn=config.get("draws"))
    if results.missing and not partial:
        todo = f"{results.missing} of {plan.size} trials"
        raise CheckpointError(f"{out} lacks {todo}: run the sweep again, or load with partial=True")
    return results


def _write_table(kept: Store, results: Results) -> None:
    """Write the table if all chunks exist, including those of other shards and of added seeds."""
    config = kept.folder.recorded()
    if config is None:
        return
    plan = make_plan(**config["plan"])
    if Store(kept.folder.path, plan, config).existing() == {c.number for c in plan.chunks}:
        complete = results.finished and plan.recipe == kept.plan.recipe
        kept.write_table((results if complete else load(kept.folder.path)).table())
