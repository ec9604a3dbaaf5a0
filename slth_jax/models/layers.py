"""The layers of a block as pure functions; absent gains, shifts and biases are skipped.

The letters in shapes are: n sequences, t query positions, s key positions, d width, h query heads,
g key/value heads, k the width of query and key heads, v the width of value heads, f hidden width.
"""

import contextlib
from collections.abc import Mapping

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from slth_jax.models.settings import ACTIVATIONS, FACTORS, Settings

Params = Mapping[str, Array]

# The largest number of attention logits computed at once; 2^27 are 512 MiB in float32.
_BLOCK_ENTRIES = 1 << 27


def wide(dtype: jax.typing.DTypeLike) -> jnp.dtype:
    """Return the dtype of norms, softmax and logits: float64 for `dtype` float64, else float32."""
    return jnp.promote_types(dtype, jnp.float32)


def full_precision(dtype: jax.typing.DTypeLike) -> contextlib.AbstractContextManager:
    """Set full precision for float32 products; JAX's default on accelerators is less precise."""
    if jnp.dtype(dtype) == wide(dtype):
        return jax.default_matmul_precision("highest")
    return contextlib.nullcontext()


def has(params: Params, name: str) -> bool:
    """Return whether `params` contain the matrix `name`, either whole or as two factors."""
    return name in params or f"{name}.first" in params


def linear(
    params: Params, name: str, x: Float[Array, "*rows i"], settings: Settings
) -> Float[Array, "*rows o"]:
    """Return ``x w + bias``, where w is the matrix `name`.

    If w is given as two factors, NAME.first `[i, u]` and NAME.second `[u, o]`, the product is
    ``factor(x first) second`` with the function `Settings.factor`. Each of the two factors may have
    a bias.
    """
    if name in params:
        x = jnp.einsum("...i,io->...o", x, params[name])
    else:
        hidden = FACTORS[settings.factor](linear(params, f"{name}.first", x, settings))
        x = linear(params, f"{name}.second", hidden, settings)
    return _plus(x, params.get(f"{name}.bias"))


def lookup(
    params: Params, name: str, index: Int[Array, "*rows"], settings: Settings
) -> Float[Array, "*rows d"]:
    """Return the rows with numbers `index` of a table, as `linear` does for one-hot inputs."""
    if name in params:
        return params[name][index]
    first = _plus(params[f"{name}.first"][index], params.get(f"{name}.first.bias"))
    rows = linear(params, f"{name}.second", FACTORS[settings.factor](first), settings)
    return _plus(rows, params.get(f"{name}.bias"))


def norm(
    params: Params, name: str, x: Float[Array, "*rows d"], settings: Settings
) -> Float[Array, "*rows d"]:
    """Return x normalised over its last axis, times a gain, plus a shift.

    If `settings.norm` is 'layer', x is normalised as ``(x - mean) / sqrt(var + eps)``; if it is
    'rms', as ``x / sqrt(mean(x^2) + eps)``. Instead of a gain and shift, `params` may contain a
    linear map NAME.map, either whole or as two factors.
    """
    if settings.norm != "none":
        y = x.astype(wide(x.dtype))
        if settings.norm == "layer":
            y = y - jnp.mean(y, axis=-1, keepdims=True)
        scale = jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + settings.norm_eps)
        x = (y * scale).astype(x.dtype)
    if has(params, f"{name}.map"):
        return linear(params, f"{name}.map", x, settings)
    if f"{name}.gain" in params:
        x = x * jnp.expand_dims(params[f"{name}.gain"], range(x.ndim - 1))
    return _plus(x, params.get(f"{name}.bias"))


def rotate(
    x: Float[Array, "n t heads k"], positions: Int[Array, " t"], settings: Settings
) -> Float[Array, "n t heads k"]:
    """Rotate pairs of components by the angle position times frequency (Su et al. 2021).

    The result is ``even' = even cos - odd sin`` and ``odd' = odd cos + even sin``. As in the
    library `transformers`, the first half of a head contains the even components, the second half
    the odd components.
    """
    dtype = wide(x.dtype)
    frequencies = jnp.repeat(jnp.asarray(settings.rotary, dtype), settings.rotary_repeat)
    chex.assert_shape(frequencies, (x.shape[-1] // 2,))
    angles = positions.astype(dtype)[:, None] * frequencies[None]  # [t, k/2]
    cos, sin = jnp.cos(angles)[None, :, None], jnp.sin(angles)[None, :, None]
    even, odd = jnp.split(x.astype(dtype), 2, axis=-1)
    return jnp.concatenate([even * cos - odd * sin, odd * cos + even * sin], -1).astype(x.dtype)


def attend(
    q: Float[Array, "n t h k"],
    keys: Float[Array, "n s g k"],
    values: Float[Array, "n s g v"],
    positions: Int[Array, " t"],
    settings: Settings,
    attn_mask: Bool[Array, "mask_n t s"] | None = None,
) -> Float[Array, "n t h v"]:
    """Return ``softmax(scale q keys^T) values`` of every head.

    `jax.nn.dot_product_attention` is not used, because it requires values as wide as keys and
    always computes its softmax in float32. For long sequences the queries are processed in blocks,
    so memory grows linearly, not quadratically, with the length.

    Args:
      q: queries.
      keys: the keys of all positions; query head i uses key/value head ``i // (h / g)``.
      values: the values of all positions.
      positions: the position of each query among the keys, used only if the settings are causal.
      settings: the network's settings; only `logit_scale` and `causal` are used.
      attn_mask: True if query t may attend to key s; the first axis has length 1 (one mask for all
        sequences) or n. If every key is masked for a query, the query attends to all keys equally.
    """
    n, count, h, k = q.shape
    length, g, v = values.shape[1:]
    chex.assert_shape(keys, (n, length, g, k))
    chex.assert_is_divisible(h, g)
    dtype = wide(q.dtype)

    def attend_to_all(q: Array, positions: Array, mask: Array | None) -> Array:
        grouped = q.reshape(n, -1, g, h // g, k)
        logits = jnp.einsum("ntgrk,nsgk->ngrts", grouped, keys, preferred_element_type=dtype)
        logits = logits * settings.logit_scale
        allowed = None if mask is None else mask[:, None, None]
        if settings.causal:
            earlier = (positions[:, None] >= jnp.arange(length)[None])[None, None, None]
            allowed = earlier if allowed is None else allowed & earlier
        if allowed is not None:
            logits = jnp.where(allowed, logits, jnp.finfo(dtype).min)
        weights = jax.nn.softmax(logits, axis=-1).astype(values.dtype)
        return jnp.einsum("ngrts,nsgv->ntgrv", weights, values).reshape(n, -1, h, v)

    size = max(1, _BLOCK_ENTRIES // (n * h * length))
    if count <= size:
        return attend_to_all(q, positions, attn_mask)
    # lax.map maps over the first axis, so queries come first. [t, n, h, k], [t], [t, mask_n, s]
    queries: tuple[Array, ...] = (jnp.swapaxes(q, 0, 1), positions)
    if attn_mask is not None:
        queries = (*queries, jnp.swapaxes(attn_mask, 0, 1))

    def attend_from_one(query: tuple[Array, ...]) -> Array:
        mask = query[2][:, None] if len(query) > 2 else None
        return attend_to_all(query[0][:, None], query[1][None], mask)[:, 0]

    return jnp.swapaxes(jax.lax.map(attend_from_one, queries, batch_size=size), 0, 1)


def mlp(params: Params, x: Float[Array, "*rows d"], settings: Settings) -> Float[Array, "*rows d"]:
    """Return ``act(x in) out``, or ``(act(x gate) * (x in)) out`` if gated."""
    activation = ACTIVATIONS[settings.activation]
    hidden = linear(params, "mlp.in", x, settings)
    if settings.gated:
        hidden = activation(linear(params, "mlp.gate", x, settings)) * hidden
    else:
        hidden = activation(hidden)
    return linear(params, "mlp.out", hidden, settings)


def _plus(x: Float[Array, "*rows o"], bias: Float[Array, " o"] | None) -> Float[Array, "*rows o"]:
    return x if bias is None else x + jnp.expand_dims(bias, range(x.ndim - 1))
