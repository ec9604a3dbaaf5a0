"""Describe everything that a sweep's results depend on."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jaxlib

from slth_jax import __version__, storage
from slth_jax.sweep.draws import draws
from slth_jax.sweep.plan import Plan
from slth_jax.sweep.program import Program, Trial


def describe(
    trial: Trial, plan: Plan, programs: Sequence[Program], more: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return everything that a sweep's results depend on, and the trial's name for messages."""
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
        "draws": draws(),
        "programs": [
            {"of": group.words, **program.spec()}
            for group, program in zip(plan.groups, programs, strict=True)
        ],
    }
    return storage.plain(described)
