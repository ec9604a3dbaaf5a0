"""Transformers as pure functions of named weight arrays.

The functions in this file compute GPT-2, Llama, BERT, the merged network of a ticket, and the
masked random source. Such networks differ only in their settings and in the names of their
parameters (see `settings`).
"""

import functools
from collections.abc import Mapping

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from slth_jax import checks
from slth_jax.models import layers
from slth_jax.models.layers import Params
from slth_jax.models.settings import Settings, matrix_shapes, vector_shapes
from slth_jax.types import ArrayLike

Mask = Bool[Array, "mask_n t t"]  # one mask for each of the n sequences, or one for all
Cached = tuple[Float[Array, "n s g k"], Float[Array, "n s g v"]]


def apply(
    params: Params,
    tokens: ArrayLike,
    settings: Settings,
    *,
    attn_mask: ArrayLike | None = None,
    dtype: jax.typing.DTypeLike = jnp.float32,
    remat: bool = False,
    token_types: ArrayLike | None = None,
) -> Float[Array, "n t outputs"]:
    """Compute the logits at every token: `embed`, every `block`, `unembed`.

    Args:
      params: named arrays; see `settings` for names and shapes.
      tokens: integers `[n, t]`, t at most `settings.max_length`.
      settings: the network.
      attn_mask: booleans `[t, t]` or `[n, t, t]`, True if token i may attend to token j; causal
        settings mask later tokens in addition. A token whose keys are all masked attends equally to
        all tokens.
      dtype: the dtype of the matrix products; float32 products have full precision. Norms and
        softmax are computed in float32 or, if `dtype` is float64, in float64, which needs JAX's x64
        mode.
      remat: whether the backward pass computes each block again instead of storing its activations.
      token_types: integers `[n, t]`, if the settings have token types; None for type 0.

    Returns:
      The logits `[n, t, outputs]`, in float32 or float64.

    Raises:
      ValueError: an array has a wrong shape, or `tokens` are not integers `[n, t]` with t at most
        `settings.max_length`. The error is also raised for tokens outside the vocabulary and for
        logits that overflow, but not if these values are traced (inside `jax.jit`).
    """
    tokens = check_tokens(tokens, settings)
    check_params(params, settings)
    mask = padding_mask(tokens, settings, _check_mask(attn_mask, tokens))
    types = check_types(token_types, tokens, settings)
    if not tokens.size:
        wide = jnp.promote_types(jnp.dtype(dtype), jnp.float32)
        return jnp.zeros((*tokens.shape, settings.outputs), wide)
    logits = _apply(dict(params), tokens, settings, mask, jnp.dtype(dtype), remat, types)
    return checks.finite_result(logits)


def loss(
    params: Params,
    tokens: ArrayLike,
    settings: Settings,
    *,
    dtype: jax.typing.DTypeLike = jnp.float32,
    remat: bool = False,
) -> Float[Array, ""]:
    """Return the mean cross-entropy, in nats per token, of each token given the earlier tokens.

    In each row of `tokens [n, t + 1]` the first t tokens are inputs and the last t tokens are
    targets.
    """
    tokens = checks.array("tokens", tokens, ndim=2, kind="int")
    if tokens.shape[0] < 1 or tokens.shape[1] < 2:
        raise checks.fail("tokens", "rows of at least two tokens", f"shape {tokens.shape}")
    logits = apply(params, tokens[:, :-1], settings, dtype=dtype, remat=remat)
    picked = jnp.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - picked)


@functools.partial(jax.jit, static_argnames="settings")
def embed(
    params: Params,
    tokens: Int[Array, "n t"],
    settings: Settings,
    *,
    start: ArrayLike = 0,
    token_types: Int[Array, "n t"] | None = None,
) -> Float[Array, "n t d"]:
    """Return the input of the first block; the position of the first token is `start`.

    The function uses the parameters `wte` and, if the settings require them, `wtt`, `wpe` and
    `ln_e.*`.
    """
    dtype = _dtype(params, "wte")
    with layers.full_precision(dtype):
        x = layers.lookup(params, "wte", tokens, settings)
        if settings.token_types:
            types = jnp.zeros_like(tokens) if token_types is None else token_types
            x = x + layers.lookup(params, "wtt", types, settings)
        if settings.positions == "learned":
            places = jnp.asarray(start) + jnp.arange(tokens.shape[1])
            x = x + layers.lookup(params, "wpe", places, settings)[None]
        if settings.embedding_norm:
            x = layers.norm(params, "ln_e", x, settings)
    return x


@functools.partial(jax.jit, static_argnames="settings")
def block(
    params: Params,
    x: Float[Array, "n t d"],
    settings: Settings,
    *,
    attn_mask: Mask | None = None,
) -> Float[Array, "n t d"]:
    """Apply one block: ``x + attention(norm(x))``, then ``x + mlp(norm(x))``.

    If `settings.post_norm` is true, the block is ``norm(x + attention(x))``, then ``norm(x +
    mlp(x))``.

    Args:
      params: the block's parameters, without the prefix 'h.' and the block axis: 'attn.q' `[d, h
        k]`, 'ln_1.gain' `[d]`, ... If there is no 'mlp.in', neither as a matrix nor as two factors,
        the MLP is skipped.
      x: the residual stream.
      settings: the network.
      attn_mask: True if token i may attend to token j.
    """
    x, _ = advance(params, x, jnp.arange(x.shape[1]), settings, attn_mask=attn_mask)
    return x


@functools.partial(jax.jit, static_argnames="settings")
def unembed(
    params: Params, x: Float[Array, "n t d"], settings: Settings
) -> Float[Array, "n t outputs"]:
    """Return the logits for the last block's output `x`, in float32 or float64.

    The function uses the parameters `ln_f.*` and `unembed`, or `wte` instead of `unembed` if the
    output layer is tied. If `settings.states` is true, the result is `x` itself.
    """
    if settings.states:
        return x.astype(layers.wide(x.dtype))
    with layers.full_precision(x.dtype):
        x = layers.norm(params, "ln_f", x, settings)
        if not settings.tied:
            return layers.linear(params, "unembed", x, settings).astype(layers.wide(x.dtype))
        table = _table(params, settings)
        return jnp.einsum("ntd,vd->ntv", x, table, preferred_element_type=layers.wide(x.dtype))


def advance(
    params: Params,
    x: Float[Array, "n t d"],
    positions: Int[Array, " t"],
    settings: Settings,
    *,
    attn_mask: Bool[Array, "mask_n t s"] | None = None,
    past: Cached | None = None,
) -> tuple[Float[Array, "n t d"], Cached]:
    """Apply one block to the tokens at `positions`, given the keys and values of a cache.

    Returns the block's output, and the keys and values of all positions in the cache. If `past` is
    None, there is no cache, and the keys and values are those of `x`.
    """
    n, t, _ = x.shape
    chex.assert_shape(positions, (t,))
    with layers.full_precision(x.dtype):
        y = x if settings.post_norm else layers.norm(params, "ln_1", x, settings)
        q, k, v = (
            layers.linear(params, f"attn.{name}", y, settings).reshape(n, t, heads, -1)
            for name, heads in (
                ("q", settings.num_heads),
                ("k", settings.num_kv_heads),
                ("v", settings.num_kv_heads),
            )
        )  # [n, t, h or g, k or v]
        if settings.positions == "rotary":
            q, k = (layers.rotate(x_, positions, settings) for x_ in (q, k))
        if past is not None:
            k, v = (
                jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), positions[0], 1)
                for old, new in zip(past, (k, v), strict=True)
            )  # [n, s, g, k or v]
        heads_out = layers.attend(q, k, v, positions, settings, attn_mask)  # [n, t, h, v]
        x = x + layers.linear(params, "attn.o", heads_out.reshape(n, t, -1), settings)
        if settings.post_norm:
            x = layers.norm(params, "ln_1", x, settings)
        if layers.has(params, "mlp.in"):
            y = x if settings.post_norm else layers.norm(params, "ln_2", x, settings)
            x = x + layers.mlp(params, y, settings)
            if settings.post_norm:
                x = layers.norm(params, "ln_2", x, settings)
    return x, (k, v)


def split(params: Params, dtype: jax.typing.DTypeLike) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return the parameters outside the blocks, and the blocks' parameters, named without 'h.'."""
    cast = {name: jnp.asarray(value).astype(dtype) for name, value in params.items()}
    ends = {name: value for name, value in cast.items() if not name.startswith("h.")}
    return ends, {name[2:]: value for name, value in cast.items() if name.startswith("h.")}


def check_types(
    token_types: ArrayLike | None, tokens: Int[Array, "n t"], settings: Settings
) -> Int[Array, "n t"] | None:
    """Check the shape of token types and, unless traced, their range; return the token types."""
    if token_types is None:
        return None
    if not settings.token_types:
        raise checks.fail("token_types", "None for a network without token types", "an array")
    types = checks.array("token_types", token_types, shape=tokens.shape, kind="int")
    values = checks.concrete(types)
    if values is not None and values.size:
        low, high = int(values.min()), int(values.max())
        if low < 0 or high >= settings.token_types:
            allowed = f"in [0, {settings.token_types - 1}]"
            raise checks.fail("token_types", allowed, f"{low} to {high}")
    return types


def check_params(params: Params, settings: Settings) -> None:
    """Raise an error if an array's shape is wrong, or if `wte` or an attention matrix is missing.

    The shapes of factors (see `Settings.factor`) are not checked.
    """
    checks.record("params", params, Mapping)
    matrices = matrix_shapes(settings)
    for name in ("wte", "h.attn.q", "h.attn.k", "h.attn.v", "h.attn.o"):
        if name not in params and f"{name}.first" not in params:
            raise checks.fail("params", f"a mapping with {name!r}", f"{len(params)} other arrays")
    for name, shape in {**matrices, **vector_shapes(settings)}.items():
        if name in params and jnp.shape(params[name]) != shape:
            given = f"shape {jnp.shape(params[name])}"
            raise checks.fail(f"params[{name!r}]", f"of shape {shape}", given)


def check_tokens(tokens: ArrayLike, settings: Settings) -> Int[Array, "n t"]:
    """Check the dtype and length of tokens and, unless traced, their range; return the tokens."""
    checks.record("settings", settings, Settings)
    tokens = checks.array("tokens", tokens, ndim=2, kind="int")
    if tokens.shape[1] > settings.max_length:
        allowed = f"at most max_length = {settings.max_length} long"
        raise checks.fail("tokens", allowed, f"{tokens.shape[1]}")
    known = checks.concrete(tokens)
    if known is not None and known.size:
        low, high = int(np.min(known)), int(np.max(known))
        if low < 0 or high >= settings.vocab_size:
            allowed = f"in [0, {settings.vocab_size - 1}] for this vocabulary"
            raise checks.fail("tokens", allowed, f"{low} to {high}")
    return tokens


@functools.partial(jax.jit, static_argnames=("settings", "dtype", "remat"))
def _apply(
    params: Params,
    tokens: Int[Array, "n t"],
    settings: Settings,
    attn_mask: Mask | None,
    dtype: jnp.dtype,
    remat: bool,
    token_types: Int[Array, "n t"] | None,
) -> Float[Array, "n t outputs"]:
    ends, stacked = split(params, dtype)

    def apply_block(x: Array, block_params: Params) -> tuple[Array, None]:
        return block(block_params, x, settings, attn_mask=attn_mask), None

    body = jax.checkpoint(apply_block) if remat else apply_block
    x = embed(ends, tokens, settings, token_types=token_types)
    x, _ = jax.lax.scan(body, x, stacked)
    return unembed(ends, x, settings)


def padding_mask(
    tokens: Int[Array, "n t"], settings: Settings, attn_mask: Mask | None = None
) -> Mask | None:
    """Return `attn_mask`; if the settings have a padding token, mask all positions with it too."""
    if settings.pad_token is None:
        return attn_mask
    n, t = tokens.shape
    real = jnp.broadcast_to((tokens != settings.pad_token)[:, None, :], (n, t, t))
    return real if attn_mask is None else real & attn_mask


def _table(params: Params, settings: Settings) -> Float[Array, "vocabulary d"]:
    """Return the embedding table, multiplied out if it is given as two factors."""
    if "wte" in params:
        return params["wte"]
    return layers.lookup(params, "wte", jnp.arange(settings.vocab_size), settings)


def _dtype(params: Mapping[str, Array], name: str) -> jnp.dtype:
    return params[name if name in params else f"{name}.first"].dtype


def _check_mask(attn_mask: ArrayLike | None, tokens: Int[Array, "n t"]) -> Mask | None:
    if attn_mask is None:
        return None
    n, t = tokens.shape
    shape = (t, t) if jnp.ndim(attn_mask) == 2 else (n, t, t)
    mask = checks.array("attn_mask", attn_mask, shape=shape, kind="bool")
    return mask if mask.ndim == 3 else mask[None]
