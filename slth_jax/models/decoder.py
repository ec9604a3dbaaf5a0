"""Pre-norm transformers as pure functions on named arrays: GPT-2, Llama, and what tickets are.

One family computes the trained network, the network that its ticket merges to, and the masked
random source as it is; they differ in settings and in which parameters there are (`settings`).
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from slth_jax import checks
from slth_jax.models import layers
from slth_jax.models.layers import Params
from slth_jax.models.settings import Settings
from slth_jax.types import Array, ArrayLike


def apply(
    params: Params,
    tokens: ArrayLike,
    settings: Settings,
    *,
    attn_mask: ArrayLike | None = None,
    dtype: jax.typing.DTypeLike = jnp.float32,
    remat: bool = False,
) -> Array:
    """Compute the logits at every token: `embed`, every `block`, `unembed`.

    Args:
      params: named arrays, masked or not; see `settings` for names and shapes.
      tokens: integers `[n, t]`, t at most `settings.max_length`.
      settings: the network.
      attn_mask: booleans `[t, t]` or `[n, t, t]`, True where row i may attend to column j, besides
        causality where the settings ask for it. A row that may attend to nothing attends to all.
      dtype: of the matrix products, which are in full precision for float32; norms and softmax are
        float32 at least. float64 needs JAX's x64 mode.
      remat: recompute each block in the backward pass instead of keeping its activations.

    Returns:
      Logits `[n, t, outputs]`, float32 at least.

    Raises:
      ValueError: tokens of the wrong kind, too long, or (where not traced) outside the vocabulary.
    """
    tokens = check_tokens(tokens, settings)
    mask = padding_mask(tokens, settings, _check_mask(attn_mask, tokens))
    return _apply(dict(params), tokens, settings, mask, jnp.dtype(dtype), remat)


def loss(
    params: Params,
    tokens: ArrayLike,
    settings: Settings,
    *,
    dtype: jax.typing.DTypeLike = jnp.float32,
    remat: bool = False,
) -> Array:
    """Return the mean cross-entropy, in nats a token, of `tokens [n, t + 1]` given those before.

    Each row is t inputs and, one to the right, t targets.
    """
    tokens = checks.array("tokens", tokens, ndim=2, kind="int")
    logits = apply(params, tokens[:, :-1], settings, dtype=dtype, remat=remat)
    picked = jnp.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - picked)


@functools.partial(jax.jit, static_argnames="settings")
def embed(params: Params, tokens: Array, settings: Settings, *, start: ArrayLike = 0) -> Array:
    """Return the rows `[n, t, d]` that enter the first block; the tokens' places begin at `start`.

    Of `params` it reads `wte` and, with learned positions, `wpe`.
    """
    dtype = _dtype(params, "wte")
    with layers.full_precision(dtype):
        x = layers.lookup(params, "wte", tokens, settings)
        if settings.positions == "learned":
            places = jnp.asarray(start) + jnp.arange(tokens.shape[1])
            x = x + layers.lookup(params, "wpe", places, settings)[None]
    return x


@functools.partial(jax.jit, static_argnames="settings")
def block(params: Params, x: Array, settings: Settings, *, attn_mask: Array | None = None) -> Array:
    """Apply one block to x `[n, t, d]`: ``x + attention(norm(x))``, then ``x + mlp(norm(x))``.

    Args:
      params: of this block alone, without the prefix: 'attn.q' `[d, h k]`, 'ln_1.gain' `[d]`, ...
        Without 'mlp.in' (whole or as factors) the second line is left out.
      x: rows of the residual stream.
      settings: the network.
      attn_mask: booleans `[n or 1, t, t]`.
    """
    x, _ = advance(params, x, jnp.arange(x.shape[1]), settings, attn_mask=attn_mask)
    return x


@functools.partial(jax.jit, static_argnames="settings")
def unembed(params: Params, x: Array, settings: Settings) -> Array:
    """Return the logits `[n, t, outputs]` of what left the last block, float32 at least.

    Of `params` it reads `ln_f.*` and `unembed`, or `wte` where tied.
    """
    with layers.full_precision(x.dtype):
        x = layers.norm(params, "ln_f", x, settings)
        if not settings.tied:
            return layers.linear(params, "unembed", x, settings).astype(layers.wide(x.dtype))
        table = _table(params, settings)
        return jnp.einsum("ntd,vd->ntv", x, table, preferred_element_type=layers.wide(x.dtype))


def advance(
    params: Params,
    x: Array,
    positions: Array,
    settings: Settings,
    *,
    attn_mask: Array | None = None,
    past: tuple[Array, Array] | None = None,
) -> tuple[Array, tuple[Array, Array]]:
    """Apply one block to the rows at `positions [t]`, given the keys and values of a cache.

    Returns the rows, and keys `[n, length, g, k]` and values with those of these rows written in.
    """
    n, t, _ = x.shape
    with layers.full_precision(x.dtype):
        y = layers.norm(params, "ln_1", x, settings)
        q, k, v = (
            layers.linear(params, f"attn.{name}", y, settings).reshape(n, t, heads, -1)
            for name, heads in (
                ("q", settings.num_heads),
                ("k", settings.num_kv_heads),
                ("v", settings.num_kv_heads),
            )
        )
        if settings.positions == "rotary":
            q, k = (layers.rotate(each, positions, settings) for each in (q, k))
        if past is not None:
            k, v = (
                jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), positions[0], 1)
                for old, new in zip(past, (k, v), strict=True)
            )
        heads = layers.attend(q, k, v, positions, settings, attn_mask)
        x = x + layers.linear(params, "attn.o", heads.reshape(n, t, -1), settings)
        if layers.has(params, "mlp.in"):
            x = x + layers.mlp(params, layers.norm(params, "ln_2", x, settings), settings)
    return x, (k, v)


def split(params: Params, dtype: jax.typing.DTypeLike) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return the parameters outside the blocks, and the stacked ones without 'h.', in `dtype`."""
    cast = {name: jnp.asarray(value).astype(dtype) for name, value in params.items()}
    ends = {name: value for name, value in cast.items() if not name.startswith("h.")}
    return ends, {name[2:]: value for name, value in cast.items() if name.startswith("h.")}


def check_tokens(tokens: ArrayLike, settings: Settings) -> Array:
    """Return tokens `[n, t]` after looking at their kind, length and, where known, range."""
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
    tokens: Array,
    settings: Settings,
    attn_mask: Array | None,
    dtype: jnp.dtype,
    remat: bool,
) -> Array:
    ends, stacked = split(params, dtype)

    def one_block(x: Array, one: Params) -> tuple[Array, None]:
        return block(one, x, settings, attn_mask=attn_mask), None

    body = jax.checkpoint(one_block) if remat else one_block
    x = embed(ends, tokens, settings)
    x, _ = jax.lax.scan(body, x, stacked)
    return unembed(ends, x, settings)


def padding_mask(tokens: Array, settings: Settings, attn_mask: Array | None = None) -> Array | None:
    """Return `attn_mask` [n or 1, t, t] without the columns of padding, where there is such."""
    if settings.pad_token is None:
        return attn_mask
    n, t = tokens.shape
    known = jnp.broadcast_to((tokens != settings.pad_token)[:, None, :], (n, t, t))
    return known if attn_mask is None else known & attn_mask


def _table(params: Params, settings: Settings) -> Array:
    """Return the embedding table `[vocabulary, d]`, multiplied out where it is two factors."""
    if "wte" in params:
        return params["wte"]
    return layers.lookup(params, "wte", jnp.arange(settings.vocab_size), settings)


def _dtype(params: Mapping[str, Array], name: str) -> jnp.dtype:
    return params[name if name in params else f"{name}.first"].dtype


def _check_mask(attn_mask: ArrayLike | None, tokens: Array) -> Array | None:
    if attn_mask is None:
        return None
    n, t = tokens.shape
    shape = (t, t) if jnp.ndim(attn_mask) == 2 else (n, t, t)
    mask = checks.array("attn_mask", attn_mask, shape=shape, kind="bool")
    return mask if mask.ndim == 3 else mask[None]
