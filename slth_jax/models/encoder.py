"""Compute embeddings of texts from the states of an encoder."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from slth_jax import checks
from slth_jax.models import decoder
from slth_jax.models.layers import Params
from slth_jax.models.settings import Settings
from slth_jax.types import ArrayLike

POOLINGS = ("mean", "first")


def embeddings(
    params: Params,
    tokens: ArrayLike,
    settings: Settings,
    *,
    kept: ArrayLike | None = None,
    token_types: ArrayLike | None = None,
    pooling: str = "mean",
    normalise: bool = True,
) -> Float[Array, "n d"]:
    """Return an embedding of each text: the states, pooled over tokens and scaled to norm 1.

    Args:
      params: named arrays; see `settings`.
      tokens: integers `[n, t]`; texts with fewer than t tokens are padded at their end.
      settings: the settings of an encoder, which is not causal and whose outputs are states.
      kept: booleans `[n, t]`, False at padding, which no token attends to; None for no padding.
      token_types: integers `[n, t]`; None for type 0.
      pooling: 'mean' over the kept tokens, or the 'first' token's state.
      normalise: whether to divide by the Euclidean norm.

    Raises:
      ValueError: the settings describe a decoder, or the arguments do not fit.
    """
    check(settings, pooling)
    tokens = decoder.check_tokens(tokens, settings)
    if not tokens.shape[1]:
        raise checks.fail("tokens", "texts of at least one token", f"shape {tokens.shape}")
    if kept is None:
        kept = jnp.ones(tokens.shape, bool)
    kept = checks.array("kept", kept, shape=tokens.shape, kind="bool")
    states = decoder.apply(
        params, tokens, settings, attn_mask=padding(kept), token_types=token_types
    )
    return checks.finite_result(pool(states, kept, pooling=pooling, normalise=normalise))


def check(settings: Settings, pooling: str) -> None:
    """Raise an error for the settings of a decoder and for an unknown pooling."""
    checks.record("settings", settings, Settings)
    if not settings.states or settings.causal:
        raise checks.fail("settings", "of an encoder: causal False, states True", "a decoder's")
    checks.choice("pooling", pooling, POOLINGS)


def padding(kept: Bool[Array, "n t"]) -> Bool[Array, "n t t"]:
    """Return the attention mask under which no token attends to padding."""
    n, t = kept.shape
    return jnp.broadcast_to(kept[:, None, :], (n, t, t))


def pool(
    states: Float[Array, "n t d"],
    kept: Bool[Array, "n t"],
    *,
    pooling: str = "mean",
    normalise: bool = True,
) -> Float[Array, "n d"]:
    """Pool states `[n, t, d]` into one embedding per text; see `embeddings`."""
    if pooling == "first":
        rows = states[:, 0]
    else:
        counts = jnp.maximum(kept.sum(axis=1, keepdims=True), 1).astype(states.dtype)
        rows = jnp.where(kept[..., None], states, 0).sum(axis=1) / counts
    if normalise:
        length = checks.finite_result(jnp.linalg.norm(rows, axis=-1, keepdims=True))
        rows = rows / jnp.maximum(length, 1e-12)
    return rows
