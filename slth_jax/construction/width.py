"""The smallest width that is good for an error, found by trial."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from slth_jax import attention, checks, initializers
from slth_jax.construction import prune, rules
from slth_jax.construction.rules import Rule
from slth_jax.types import Array, ArrayLike, AttentionParams, Key


class FoundWidth(NamedTuple):
    """The smallest width ``n_k = n_v`` found, its mean error, and all that were tried."""

    width: int
    error: float
    tried: dict[int, float]  # width to mean error


def find_width(
    target: AttentionParams,
    error: float,
    *,
    key: Key,
    inputs: ArrayLike | None = None,
    max_norm: float = 1.0,
    seeds: int = 10,
    construction: str | Rule = "fitted",
    source: Callable[..., AttentionParams] = initializers.theory_attention,
    largest: int = 1024,
) -> FoundWidth:
    """Return the smallest source width at which tickets of `target` have at most a mean error.

    The error of a ticket is the largest 2-norm over tokens, averaged over sequences and sources.
    Widths are doubled until it is small enough, then bisected; every doubling compiles one
    program, for all widths up to its own. Sources of one seed are nested (the first n units of
    the widest), so that errors fall nearly steadily with the width; where they do not, what is
    found is one of the widths at which they pass `error`.

    Args:
      target: `w_q, w_k [h, m, d_k]`, `w_v [h, m, d_v]`, `w_o [h, d_v, o]`.
      error: the mean error that is wished, above 0.
      key: of the sources, and of the inputs where none are given.
      inputs: sequences `[s, t, m]`; None for 16 of 8 random tokens each of norm `max_norm`.
      max_norm: see `inputs`.
      seeds: number of random sources.
      construction: a name in `rules.RULES`, or a rule.
      source: a distribution of `initializers`.
      largest: give up beyond this width.

    Raises:
      ValueError: `error` is not reached up to `largest`, or what `prune_attention` raises.

    Examples:
      >>> shape = {"num_heads": 1, "d_in": 2, "d_out": 2}
      >>> target = initializers.theory_attention(jax.random.key(0), n_k=2, n_v=2, **shape)
      >>> found = find_width(target, 0.5, key=jax.random.key(1), seeds=4)
      >>> found.error <= 0.5 and found.width in found.tried
      True
    """
    wished = checks.number("error", error, low=0, open_low=True)
    rule = rules.get(construction)
    h, m, _ = checks.array("target.w_q", target.w_q, ndim=3, kind="wide").shape
    checks.integer("seeds", seeds, low=1)
    checks.integer("largest", largest, low=m)
    for_inputs, for_sources = jax.random.split(key)
    if inputs is None:
        x = jax.random.normal(for_inputs, (16, 8, m))
        x = x * (max_norm / jnp.linalg.norm(x, axis=-1, keepdims=True))
    else:
        x = checks.array("inputs", inputs, shape=(None, None, m))
    draw = partial(source, num_heads=h, d_in=m, d_out=target.w_o.shape[-1])
    keys = jax.random.split(for_sources, seeds)
    tried: dict[int, float] = {}

    def small_enough(padded: int, width: int) -> bool:
        found = _errors(keys, target, x, width, draw=draw, padded=padded, rule=rule)
        tried[width] = float(np.mean(found))
        return tried[width] <= wished

    below, padded = m - 1, min(2 * m, largest)  # a source needs a unit for each input coordinate
    while not small_enough(padded, padded):
        if padded == largest:
            came = f"{tried[largest]:.3g} there"
            raise checks.fail("error", f"reached by width largest={largest}", came)
        below, padded = padded, min(2 * padded, largest)
    found = padded
    while found - below > 1:
        middle = (below + found) // 2
        below, found = (below, middle) if small_enough(padded, middle) else (middle, found)
    return FoundWidth(found, tried[found], dict(sorted(tried.items())))


@partial(jax.jit, static_argnames=("draw", "padded", "rule"))
def _errors(
    keys: Key, target: AttentionParams, x: Array, width: ArrayLike, *, draw, padded: int, rule: Rule
) -> Array:
    """Return the error of the ticket of each key, `[seeds]`."""

    def one(key: Key) -> Array:
        weights = draw(key, n_k=width, n_v=width, padded=padded)
        ticket = prune.apply_masks(
            weights, prune.prune_attention(weights, target, construction=rule)
        )

        def worst(sequence: Array) -> Array:
            difference = attention.apply(ticket, sequence) - attention.apply(target, sequence)
            return jnp.max(jnp.linalg.norm(difference, axis=-1))

        return jnp.mean(jax.vmap(worst)(x))

    return jax.vmap(one)(keys)
