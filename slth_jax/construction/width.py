"""Search for the smallest source width at which tickets have at most a given error."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from slth_jax import attention, checks, initializers
from slth_jax.attention.core import validated
from slth_jax.construction import prune, rules
from slth_jax.construction.rules import Rule
from slth_jax.types import Array, ArrayLike, AttentionParams, Key, Memory, Projections


class FoundWidth(NamedTuple):
    """The smallest width ``n_k = n_v``, its mean error, and all widths that were tried."""

    width: int
    error: float
    tried: dict[int, float]  # maps each width to its mean error


def find_width(
    target: AttentionParams,
    error: float,
    *,
    key: Key,
    inputs: ArrayLike | None = None,
    memory: Memory | None = None,
    max_norm: float = 1.0,
    seeds: int = 10,
    construction: str | Rule = "fitted",
    source: Callable[..., Projections] = initializers.theory_attention,
    largest: int = 1024,
) -> FoundWidth:
    """Return the smallest source width at which the mean error of tickets is at most `error`.

    The mean error is `attention.error`, averaged over sequences and random sources. Widths are
    doubled until the mean error is small enough, then bisected. Each doubling compiles one program,
    which is used for all widths up to the doubled width. The sources of one seed are nested: a
    source of width n has the first n units of the widest source. Because the sources are nested,
    errors fall nearly steadily as the width grows. If the mean error does not fall steadily, the
    result is a width that meets `error` although the next smaller width does not. No width below
    ``max(m, n, l)``, the largest input width, is tried.

    Args:
      target: `w_q [h, m, d_k]`, `w_k [g, n, d_k]`, `w_v [g, l, d_v]`, `w_o [h, d_v, o]`.
      error: the largest mean error allowed, above 0.
      key: a PRNG key from which the sources are drawn; if `inputs` is None, the inputs are drawn
        from it too.
      inputs: sequences `[s, t, m]`; None for 16 sequences of 8 random tokens of norm `max_norm`.
      memory: for cross-attention, the argument `memory` of `attention.error`. If `memory` is None,
        but m, n and l are not all equal, random tokens are drawn.
      max_norm: the norm of random tokens.
      seeds: the number of random sources.
      construction: a `Rule`, or the name of a rule in `rules.RULES`.
      source: the function from `initializers` that draws a source.
      largest: the largest width to try.

    Raises:
      ValueError: no width up to `largest` has a mean error of at most `error`, or `prune_attention`
        would raise an error.

    Examples:
      >>> shape = {"num_heads": 1, "d_in": 2, "d_out": 2}
      >>> target = initializers.theory_attention(jax.random.key(0), n_k=2, n_v=2, **shape)
      >>> result = find_width(target, 0.5, key=jax.random.key(1), seeds=4)
      >>> result.error <= 0.5 and result.width in result.tried
      True
    """
    allowed = checks.number("error", error, low=0, open_low=True)
    rule = rules.get(construction)
    checks.record("target", target, AttentionParams)
    of_target = validated("target", target)
    (h, m, _), n, l = of_target.w_q.shape, of_target.w_k.shape[1], of_target.w_v.shape[1]
    if 0 in target.w_o.shape:
        raise checks.fail("target.w_o", "without empty dimensions", f"shape {target.w_o.shape}")
    checks.integer("seeds", seeds, low=1)
    least = max(m, n, l)  # a source needs a unit for each input coordinate
    checks.integer("largest", largest, low=least)
    max_norm = checks.number("max_norm", max_norm, low=0, open_low=True)
    checks.function("source", source)
    for_inputs, for_sources = jax.random.split(checks.key("key", key))

    def tokens(key: Key, width: int) -> Float[Array, "16 8 {width}"]:
        x = jax.random.normal(key, (16, 8, width))
        return x * (max_norm / jnp.linalg.norm(x, axis=-1, keepdims=True))

    if inputs is None:
        x = tokens(for_inputs, m)
    else:
        x = checks.array("inputs", inputs, shape=(None, None, m))
    draw = partial(source, num_heads=h, d_in=m, d_out=target.w_o.shape[-1])
    if not m == n == l:
        draw = partial(draw, d_memory=(n, l))
        if memory is None:
            keys = jax.random.split(for_inputs)
            memory = tokens(keys[0], n), tokens(keys[1], l)
    keys = jax.random.split(for_sources, seeds)
    tried: dict[int, float] = {}

    def small_enough(padded: int, width: int) -> bool:
        errors = _errors(keys, target, x, memory, width, draw=draw, padded=padded, rule=rule)
        tried[width] = float(np.mean(errors))
        return tried[width] <= allowed

    below, padded = least - 1, min(2 * least, largest)
    while not small_enough(padded, padded):
        if padded == largest:
            reached = f"{tried[largest]:.3g} at that width"
            raise checks.fail("error", f"reached by width largest={largest}", reached)
        below, padded = padded, min(2 * padded, largest)
    width = padded
    while width - below > 1:
        middle = (below + width) // 2
        below, width = (below, middle) if small_enough(padded, middle) else (middle, width)
    return FoundWidth(width, tried[width], dict(sorted(tried.items())))


@partial(jax.jit, static_argnames=("draw", "padded", "rule"))
def _errors(
    keys: Key,
    target: AttentionParams,
    x: Array,
    memory: Memory | None,
    width: ArrayLike,
    *,
    draw,
    padded: int,
    rule: Rule,
) -> Float[Array, " seeds"]:
    """Draw a source from each key; return the error of its ticket, averaged over sequences."""

    def ticket_error(key: Key) -> Float[Array, ""]:
        weights = draw(key, n_k=width, n_v=width, padded=padded)
        masks = prune.prune_attention(weights, target, construction=rule)
        ticket = prune.apply_masks(weights, masks)
        return jnp.mean(attention.error(ticket, target, x, memory=memory))

    return jax.vmap(ticket_error)(keys)
