"""Measure and bound the errors of tickets, and write ticket files."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import tickets
from experiments.folder import RunFolder
from experiments.paper.sources import narrow
from slth_jax import attention, guarantee, initializers, ticket
from slth_jax.sweep import Results
from slth_jax.types import Array, PaddedAttention, Projections


def first_of_each_width(
    out: RunFolder,
    results: Results,
    target: Projections,
    x: Array,
    *,
    sources: Sequence[str],
) -> list[dict[str, Any]]:
    """Bound the errors of the tickets of seed 0 at every width; save the widest tickets.

    Returns a row for each distribution of sources and each width. `error` is the measured error for
    the first target. `bound` holds for every input in which no token's norm exceeds the largest
    norm of a token of `x [s, t, m]`, if the networks are computed in the dtype of `x`.
    """
    max_norm = float(jnp.max(jnp.linalg.norm(x, axis=-1)))
    rows = results.rows
    seed = rows[0]["seed"]
    widest = max(row["width"] for row in rows)
    shape = {
        "num_heads": target.w_q.shape[0],
        "d_in": target.w_q.shape[1],
        "d_out": target.w_o.shape[-1],
    }
    guarantees = []
    for source_name in sources:
        # All sources are drawn with the padded width; the source of width n is their first n units.
        draw = jax.jit(partial(initializers.ATTENTION[source_name], padded=widest, **shape))
        for index, row in enumerate(rows):
            if row["seed"] != seed or row["source"] != source_name:
                continue
            width, error = row["width"], float(np.ravel(row["error"])[0])
            key = jax.random.key(seed, impl=ticket.IMPL)
            source = narrow(draw(key, n_k=width, n_v=width), width)
            masks = narrow(PaddedAttention(**results.arrays(index)), width)
            bound = guarantee.guarantee(
                source, masks, target, max_norm, num_tokens=x.shape[1], dtype=x.dtype
            )
            guarantees.append(
                {
                    "source": source_name,
                    "width": width,
                    "seed": seed,
                    "error": error,
                    "bound": bound.error,
                    "vacuous": bound.vacuous,
                }
            )
            if width == widest:
                tickets.save(
                    out,
                    f"{source_name}-width{width}-seed{seed}",
                    source_name,
                    {**shape, "n_k": width, "n_v": width},
                    seed,
                    masks,
                    weights=source,
                    metadata={
                        "error": error,
                        "dtype": str(x.dtype),  # the precision in which errors are measured
                        "bound": bound.error,
                        "max_norm": max_norm,
                    },
                )
    return guarantees


def merged_norms(params: Projections) -> tuple[float, float]:
    """Return, for the merged ``w_qk`` and ``w_vo``, the largest spectral norm over the heads."""
    merged = attention.merge(params)
    qk, vo = (max(float(np.linalg.norm(np.asarray(w), 2)) for w in part) for part in merged)
    return qk, vo
