"""The rule 'proof' (Lemmas 4 and 7): assign units in order, equally many to each column."""

import jax.numpy as jnp

from slth_jax.construction.rules.rule import Factors, Rule, Slots, Span


def in_order(factors: Factors, span: Span) -> Slots:
    """Assign ``(last - first) // r`` consecutive units to each column; leave the rest unused."""
    r = factors.right.shape[1]
    size = jnp.maximum((jnp.asarray(span.last) - span.first) // r, 1)
    slots = jnp.arange(span.most // r, dtype=jnp.int32)[None, :]
    filled = jnp.broadcast_to(slots < size, (r, span.most // r))
    units = span.first + jnp.arange(r, dtype=jnp.int32)[:, None] * size + slots
    return jnp.where(filled, units, 0).astype(jnp.int32), filled


RULE = Rule("proof", "in order, as in the proof of Lemma 4", in_order)
