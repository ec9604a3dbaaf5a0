"""Run one trial of the law: draw a target and a source, compute the ticket, count its failures."""

import functools
import math

import jax
import jax.numpy as jnp

from slth_jax import attention, construction, initializers
from slth_jax.types import Array, AttentionParams, Hparams, Key, PaddedAttention, Projections

_TARGET = 1 << 20  # folded into a trial's key; the source's units use smaller numbers


def random_target(key: Key, *, num_heads: int, d: int) -> AttentionParams:
    """Draw Gaussian projections of width ``max(1, d / H)``, each scaled to spectral norm 1."""
    d_k = max(1, d // num_heads)

    def projection(key: Key, shape: tuple[int, ...]) -> Array:
        weights = jax.random.normal(key, shape, jnp.float32)
        return weights / jnp.linalg.norm(weights, 2, axis=(-2, -1), keepdims=True)

    shapes = [(num_heads, d, d_k)] * 3 + [(num_heads, d_k, d)]
    return AttentionParams(
        *(projection(k, s) for k, s in zip(jax.random.split(key, 4), shapes, strict=True))
    )


def drawn_target(key: Key, *, num_heads: int, d: int) -> Projections:
    """Draw a target from the theory's distribution; subset sums rarely reach its large entries."""
    d_k = max(1, d // num_heads)
    return initializers.theory_attention(
        key, num_heads=num_heads, d_in=d, d_out=d, n_k=d_k, n_v=d_k
    )


TARGETS = {"spectral": random_target, "theory": drawn_target}
"""Functions that draw targets, by the name of the distribution."""


def inputs(key: Key, *, sequences: int, tokens: int, d: int, norm: float = 1.0) -> Array:
    """Draw sequences `[s, t, d]` of tokens with random directions and norm ``norm sqrt(d)``."""
    x = jax.random.normal(key, (sequences, tokens, d))
    return x * (norm * math.sqrt(d) / jnp.linalg.norm(x, axis=-1, keepdims=True))


def make_trial(
    *,
    target: str,
    num_heads: int,
    d: int,
    rule: str,
    sequences: int,
    tokens: int,
    norm: float = 1.0,
):
    """Return the trial function for one shape and rule; `_measure` describes the metrics.

    For every seed the trial function draws a target, inputs and a source.
    """

    def trial(key: Key, hparams: Hparams):
        width = hparams["width"]
        for_target, for_inputs = jax.random.split(jax.random.fold_in(key, _TARGET))
        drawn = TARGETS[target](for_target, num_heads=num_heads, d=d)
        x = inputs(for_inputs, sequences=sequences, tokens=tokens, d=d, norm=norm)
        source = initializers.theory_attention(
            key,
            num_heads=num_heads,
            d_in=d,
            d_out=d,
            n_k=width,
            n_v=width,
            padded=hparams["width_max"],
        )
        masks = construction.prune_attention(source, drawn, construction=rule)
        return _measure(source, masks, drawn, x)

    return trial


def _measure(source, masks, target, x: Array) -> dict[str, Array]:
    """Return the metrics of a ticket.

    `of_sequence` is, for each sequence, the largest 2-norm of a token's output error, and `error`
    is the mean of `of_sequence`. `entries` is the number of entries of all merged matrices, and
    `median` is the median error of an entry. `worst_share` is the share that the worst 1 % of the
    entries contribute to the sum of all entries' errors. An entry fails at a level of output error
    if ``|error| d > level``. For each level, `failed` is the number of failing entries. `beyond` is
    the number of failing entries whose target value is larger than the sum of all samples with the
    sign of this value. `small` is the number of entries counted in `beyond` for which the sum of
    the samples of that sign is less than half of the median of such sums over all entries of the
    same product (w_qk or w_vo). `kept` is the share of connections that the ticket keeps.
    """
    ticket = construction.apply_masks(source, masks)
    error = attention.error(ticket, target, x)
    merged, expected = (attention.merge(params) for params in (ticket, target))
    off, far, low = [], [], []
    root = jnp.sqrt(jnp.asarray(source.key_width, jnp.float32))
    turn = jnp.matrix_transpose
    products = (
        (source.w_q / root, turn(source.w_k * masks.w_k), merged.w_qk, expected.w_qk),
        (turn(source.w_o), turn(source.w_v * masks.w_v), turn(merged.w_vo), turn(expected.w_vo)),
    )
    for left, right, reached, value in products:  # [h, p, n], [h, n, r], [h, p, r], [h, p, r]
        off.append(jnp.abs(reached - value).ravel())
        most, least = _reach(left, right)
        far.append(((value > most) | (value < -least)).ravel())
        reach = jnp.where(value > 0, most, least)
        low.append((reach < 0.5 * jnp.median(reach)).ravel())
    entry, beyond, small = (jnp.concatenate(parts) for parts in (off, far, low))
    worst = jax.lax.top_k(entry, math.ceil(entry.size / 100))[0]
    d = value.shape[-1]
    failed = entry[None] * d > jnp.array(LEVELS, entry.dtype)[:, None]
    connections = (masks.w_q, masks.w_k, masks.w_v, masks.w_o)
    total = sum(mask.size for mask in connections)
    real = jnp.mean(source.k_units) if isinstance(source, PaddedAttention) else 1.0
    return {
        "error": jnp.mean(error),
        "of_sequence": error,
        "median": jnp.median(entry),
        "worst_share": jnp.sum(worst) / jnp.maximum(jnp.sum(entry), 1e-30),
        "entries": jnp.asarray(entry.size),
        "failed": jnp.sum(failed, axis=1),
        "beyond": jnp.sum(failed & beyond[None], axis=1),
        "small": jnp.sum(failed & (beyond & small)[None], axis=1),
        "kept": sum(jnp.sum(mask) for mask in connections) / (total * real),
    }


LEVELS = (1.0, 0.1, 0.01, 0.001)
"""The levels of output error at which failing entries are counted."""


def _reach(left: Array, right: Array) -> tuple[Array, Array]:
    """Return the sums over k of the positive and of the negative samples ``left_ik right_kj``.

    Both sums have the shape `[h, p, r]`; the absolute value of the second sum is returned.
    """
    positive, negative = (functools.partial(jnp.maximum, 0.0), lambda w: jnp.maximum(-w, 0.0))
    product = functools.partial(jnp.einsum, "hpn,hnr->hpr")
    same = product(positive(left), positive(right)) + product(negative(left), negative(right))
    other = product(positive(left), negative(right)) + product(negative(left), positive(right))
    return same, other
