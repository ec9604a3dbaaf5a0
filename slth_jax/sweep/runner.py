"""`run` runs a trial at every point of a grid with every seed; `load` reads saved results."""

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
    """Options of `run` that divide the work and show its progress.

    The result of a trial does not depend on these options, except that `batch` affects its last
    bits.
    """

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
    """Run `trial` at every point of `grid` with every seed, or finish a stopped sweep in `out`.

    A trial is a pure function `trial(key, hparams) -> metrics` or `-> (metrics, arrays)`. The key
    of a trial is `jax.random.key(seed, impl='threefry2x32')`. `metrics` is a dict from name to a
    scalar or to a small array of fixed shape. `arrays` is any tree of arrays, such as masks (which
    are stored as one bit per entry). Trials are vmapped, sharded over the first axis of `mesh` and
    computed in chunks. Each chunk is saved before the next chunk starts.

    On the same kind of device and with the same `batch`, a trial's result has the same bits for
    every chunk and every number of devices and processes. There is one exception: XLA may simplify
    an expression of the trial, such as ``x / sqrt(n)``, differently for one device than for several
    devices, unless `jax.lax.optimization_barrier` is applied to the divisor.

    Args:
      trial: the trial function; its result must depend only on `key` and `hparams`.
      seeds: the number of seeds (0, 1, ...), or a list of integers in [0, 2^32). A sweep in `out`
        can be continued with a list that has more seeds at the end. The trials of the additional
        seeds are added, and nothing else changes.
      grid: a dict from name to list of values, of which all combinations are run; or a list of
        points, each a dict from name to value. A number or boolean becomes a traced scalar in
        `hparams`; any other value is static.
      static: the names of further values that the trial receives as plain Python; a program is
        compiled for each combination of static values.
      padded: the names of sizes, which are integers >= 1. The trial receives the size as a traced
        int32, `hparams[name]`, and the padded size as a Python int, `hparams[name + '_max']`, which
        is at least as large. The trial must use the padded size in the shapes of its arrays. The
        trial's result must not depend on the padded size.
      buckets: the padded sizes. None for 8, 32, 128, 512, ...; 'largest' to pad every size to the
        largest size in the grid; a list of padded sizes; or a dict from the name of a size to such
        a choice. A program is compiled for each padded size.
      out: a folder for the results, on this machine or in a bucket (gs://, s3://). A stopped sweep
        is resumed from `out`. If `out` is None, the results stay in memory. No other sweep can use
        the folder once the first chunk is finished.
      mesh: a mesh of devices; None for all devices of all processes along one axis.
      config: other values that the results depend on, which JSON can store. These values are saved,
        and a sweep can be resumed only with an equal `config`.
      **work: options that divide the work and show its progress.

        - ``chunk``: the number of trials that are saved together; None for 512 (more for very many
          trials). After a kill at most one chunk is computed again, so choose a smaller number if a
          trial takes seconds or minutes.
        - ``batch``: the number of trials that a device computes at once; None for an eighth of a
          chunk, at most 64 (16 on a CPU). The last bits of results depend on the batch, so the
          default batch does not depend on the number of devices.
        - ``shard``: 'i/n' computes only the chunks whose number is i modulo n (0 <= i < n), without
          communication between shards. Shards may have the same folder `out`; `load` joins them.
        - ``progress``: a function that the first process calls with (trials done, all trials of
          this call), at the start and after each chunk.
        - ``on_start``: a function that the first process calls with the numbers of trials (see
          `Results.trials`), just before their computation starts.

    Returns:
      The results of all trials of this call, some of which may have been read from `out`.

    Raises:
      ValueError: an argument cannot be used, or the trial does not return a dict of named metrics.
      CheckpointError: `out` belongs to another sweep, is in use, or cannot be written to.
      SystemExit: with status 143, after SIGTERM, if `out` is given and `run` was called in the main
        thread. Finished chunks are kept; the chunk in progress is lost.
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
    """Disable any mesh set by `jax.set_mesh`, because a sweep receives its mesh as an argument."""
    if jax.sharding.get_abstract_mesh().empty:
        yield
    else:
        with jax.set_mesh(Mesh(np.empty((), object), ())):
            yield


def load(
    out: str | os.PathLike[str], *more: str | os.PathLike[str], partial: bool = False
) -> Results:
    """Return the results in the folder of a sweep, joined with shards in other folders.

    Args:
      out: the folder that was passed to `run` as `out`.
      more: folders of other shards of the same sweep.
      partial: whether to return the finished trials of an unfinished sweep, instead of raising an
        error.

    Raises:
      CheckpointError: a folder contains no sweep, is damaged or belongs to another sweep, or trials
        are missing and `partial` is False.
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
    """Write the table of all trials if the chunks of all shards and of all seeds exist."""
    config = kept.folder.recorded()
    if config is None:
        return
    plan = make_plan(**config["plan"])
    if Store(kept.folder.path, plan, config).existing() == {c.number for c in plan.chunks}:
        complete = results.finished and plan.recipe == kept.plan.recipe
        kept.write_table((results if complete else load(kept.folder.path)).table())
