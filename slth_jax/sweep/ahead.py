"""Compile a sweep's programs for a machine that is not present."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from slth_jax import machines
from slth_jax.sweep.plan import MAX_BATCH, Plan, make_plan
from slth_jax.sweep.program import Program


class Ahead(NamedTuple):
    """A program of a sweep, compiled for another machine, and the number of its calls."""

    report: machines.Report
    calls: int


def compile_for(on: str, trial: Callable, *, batch: int | None = None, **plan: Any) -> list[Ahead]:
    """Compile a sweep's programs for a machine such as 'v5e:4x4'; return one `Ahead` per program.

    Args:
      on: the machine, see `machines.compile_for`.
      trial: the trial function, see `sweep.run`.
      batch: the number of trials per chip and call; None for 64, the default of accelerators.
      **plan: `seeds`, `grid` and the other arguments of `plan.make_plan`, see `sweep.run`.
    """
    planned: Plan = make_plan(batch=batch or MAX_BATCH, **plan)
    ahead = []
    for group in range(len(planned.groups)):

        def traced(devices: Sequence[Any], group: int = group) -> Any:
            return Program(trial, planned, group, machines.mesh_of(devices)).trace()

        report = machines.compile_for(on, traced)
        trials = len(planned.groups[group].points) * len(planned.seeds)
        ahead.append(Ahead(report, -(-trials // (planned.batch * report.chips))))
    return ahead
