"""From trials to the rows of a summary."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from slth_jax import attention, construction
from slth_jax.types import Array, ArrayLike, AttentionParams


def spread(
    rows: Sequence[Mapping[str, Any]], name: str, values: Sequence[Any], metric: str = "error"
) -> list[dict[str, Any]]:
    """Return a row per entry of an array metric: `metric` becomes that entry, `name` its value."""
    return [
        {**row, name: value, metric: entry}
        for row in rows
        for value, entry in zip(values, row[metric], strict=True)
    ]


def summarize(
    rows: Sequence[Mapping[str, Any]],
    by: Sequence[str],
    metric: str = "error",
    also: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Return a row per setting: its values, then mean, std, median and count over the seeds.

    Args:
      rows: one per trial.
      by: names of the values that make a setting.
      metric: what is averaged. Values that are not finite are counted, as `not_finite`, and left
        out of the mean.
      also: names of metrics that are summed over the seeds.
    """
    settings: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in rows:
        settings.setdefault(tuple(row[name] for name in by), []).append(row)
    summary = []
    for setting, here in settings.items():
        values = np.array([row[metric] for row in here], float)
        finite = values[np.isfinite(values)]
        one: dict[str, Any] = dict(zip(by, setting, strict=True))
        one |= {
            "mean": float(np.mean(finite)) if finite.size else float("nan"),
            "std": float(np.std(finite, ddof=1)) if finite.size > 1 else 0.0,
            "median": float(np.median(finite)) if finite.size else float("nan"),
            "count": len(here),
        }
        if finite.size < values.size:
            one["not_finite"] = int(values.size - finite.size)
        one |= {name: int(sum(row[name] for row in here)) for name in also}
        summary.append(one)
    return summary


def attention_error(
    source: AttentionParams,
    masks: AttentionParams,
    target: AttentionParams,
    x: Array,
    *,
    key_width: ArrayLike | None = None,
    queries: Array | None = None,
) -> Array:
    """Return how far a ticket is from its target, in float64 where JAX has it switched on.

    The ticket is applied through `attention.apply` on ``source * masks``. The 2-norm of the
    difference is maximised over tokens and averaged over the sequences `x [s, t, m]`.
    """
    wide = partial(jax.tree.map, lambda w: w.astype(x.dtype))
    ticket = wide(construction.apply_masks(source, masks))
    of_target = wide(target)

    def worst(sequence: Array) -> Array:
        apply = partial(attention.apply, x=sequence, queries=queries)
        difference = apply(ticket, key_width=key_width) - apply(of_target)
        return jnp.max(jnp.linalg.norm(difference, axis=-1))

    # One sequence after another: long ones would not fit beside each other.
    one_by_one = x.shape[1] > 512
    return jnp.mean(jax.lax.map(worst, x) if one_by_one else jax.vmap(worst)(x))
