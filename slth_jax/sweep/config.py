"""What the results of a sweep depend on, and how another sweep is told from it."""

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jaxlib
import numpy as np

from slth_jax import __version__, storage
from slth_jax.sweep.grid import seeds_of
from slth_jax.sweep.plan import Plan
from slth_jax.sweep.program import Program, Trial


def describe(
    trial: Trial, plan: Plan, programs: Sequence[Program], more: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return everything that a sweep's results depend on, and its trial's name for people."""
    device = jax.devices()[0]
    name = getattr(trial, "__qualname__", type(trial).__name__)
    described = {
        "trial": f"{trial.__module__}.{name}",
        "config": dict(more or {}),
        "plan": plan.recipe,
        "versions": {
            "jax": jax.__version__,
            "jaxlib": jaxlib.__version__,
            "slth_jax": __version__,
            "platform": device.platform,
            "device": device.device_kind,
        },
        "programs": [
            {"of": group.words, **program.spec()}
            for group, program in zip(plan.groups, programs, strict=True)
        ],
    }
    return storage.plain(described)


def extends(there: Mapping[str, Any], here: Mapping[str, Any]) -> bool:
    """Return whether sweep `here` is sweep `there`, or has the seeds of `there` and further ones.

    Only the portions of seeds are looked at: see `difference` for the rest.
    """
    portions = there["plan"]["portions"]
    return portions == here["plan"]["portions"][: len(portions)]


def difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str | None:
    """Return the first element in which two sweeps differ, in words; None where they agree.

    More seeds are no difference, and neither is the trial's name: its computation is compared by
    its fingerprint.
    """
    plan_there, plan_here = dict(there["plan"]), dict(here["plan"])
    seeds = [plan.pop("seeds") for plan in (plan_there, plan_here)]
    portions = [plan.pop("portions") for plan in (plan_there, plan_here)]
    for place, old, new in (
        ("config", there["config"], here["config"]),
        ("", plan_there, plan_here),
        ("versions", there["versions"], here["versions"]),
    ):
        found = storage.difference(old, new, at=place)
        if found is not None:
            return _words(*found)
    before, now = (seeds_of(some) for some in seeds)
    goes_on = portions[0] == portions[1][: len(portions[0])]
    if not (goes_on and np.array_equal(now[: len(before)], before)):
        return f"{_words('seeds', *seeds)} (it may go on with these and more behind them)"
    for was, program in zip(there["programs"], here["programs"], strict=True):
        found = storage.difference(was, program)
        if found is not None:
            where = f" at {program['of']}" if program["of"] else ""
            what = "" if found[0] == "fingerprint" else f": {_words(*found)}"
            name = "" if there["trial"] == here["trial"] else f", which was {there['trial']}"
            return f"the trial {here['trial']}{name} computes something else{where}{what}"
    return None


def _words(place: str, before: Any, now: Any) -> str:
    return f"{place} is {_short(before)} there and {_short(now)} here"


def _short(value: Any) -> str:
    short = reprlib.Repr()
    short.maxlist = short.maxdict = 6
    return "missing" if value is storage.MISSING else short.repr(value)
