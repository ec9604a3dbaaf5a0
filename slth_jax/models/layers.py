"""The parts of a block as pure functions on named arrays: what is not among them is not applied."""

import contextlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from slth_jax.models.settings import ACTIVATIONS, FACTORS, Settings
from slth_jax.types import Array

Params = Mapping[str, Array]

# Attention logits computed at once: 2^27 entries are 512 MiB in float32.
_BLOCK_ENTRIES = 1 << 27


def wide(dtype: jax.typing.DTypeLike) -> jnp.dtype:
    """Return the dtype of norms, softmax and logits: float32, or float64 where that is asked."""
    return jnp.promote_types(dtype, jnp.float32)


def full_precision(dtype: jax.typing.DTypeLike) -> contextlib.AbstractContextManager:
    """Have products of float32 computed in float32, which accelerators shorten by default."""
    if jnp.dtype(dtype) == wide(dtype):
        return jax.default_matmul_precision("highest")
    return contextlib.nullcontext()


def has(params: Params, name: str) -> bool:
    """Return whether the matrix `name` is there, whole or as two factors."""
    return name in params or f"{name}.first" in params


def linear(params: Params, name: str, x: Array, settings: Settings) -> Array:
    """Return ``x w + bias`` for x `[..., i]`, w `[i, o]`.

    Where w is given as NAME.first `[i, n]` and NAME.second `[n, o]`, the product is
    ``factor(x first) second`` with the settings' factor; each may have a bias of its own.
    """
    if name in params:
        x = jnp.einsum("...i,io->...o", x, params[name])
    else:
        hidden = FACTORS[settings.factor](linear(params, f"{name}.first", x, settings))
        x = linear(params, f"{name}.second", hidden, settings)
    return _plus(x, params.get(f"{name}.bias"))


def lookup(params: Params, name: str, index: Array, settings: Settings) -> Array:
    """Return the rows `index` of a table, `linear` of one-hot inputs."""
    if name in params:
        return params[name][index]
    first = _plus(params[f"{name}.first"][index], params.get(f"{name}.first.bias"))
    rows = linear(params, f"{name}.second", FACTORS[settings.factor](first), settings)
    return _plus(rows, params.get(f"{name}.bias"))


def norm(params: Params, name: str, x: Array, settings: Settings) -> Array:
    """Return x `[..., d]` normalised over its last axis, times a gain, plus a shift.

    'layer': ``(x - mean) / sqrt(var + eps)``; 'rms': ``x / sqrt(mean(x^2) + eps)``.
    """
    if settings.norm != "none":
        y = x.astype(wide(x.dtype))
        if settings.norm == "layer":
            y = y - jnp.mean(y, axis=-1, keepdims=True)
        scale = jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + settings.norm_eps)
        x = (y * scale).astype(x.dtype)
    if f"{name}.gain" in params:
        x = x * jnp.expand_dims(params[f"{name}.gain"], range(x.ndim - 1))
    return _plus(x, params.get(f"{name}.bias"))


def rotate(x: Array, positions: Array, settings: Settings) -> Array:
    """Turn the pairs of x `[n, t, heads, k]` by position times frequency (Su et al. 2021).

    ``even' = even cos - odd sin``, ``odd' = odd cos + even sin``; the first half of a head holds
    the even components, as in `transformers`.
    """
    dtype = wide(x.dtype)
    frequencies = jnp.repeat(jnp.asarray(settings.rotary, dtype), settings.rotary_repeat)
    angles = positions.astype(dtype)[:, None] * frequencies[None]
    cos, sin = jnp.cos(angles)[None, :, None], jnp.sin(angles)[None, :, None]
    even, odd = jnp.split(x.astype(dtype), 2, axis=-1)
    return jnp.concatenate([even * cos - odd * sin, odd * cos + even * sin], -1).astype(x.dtype)


def attend(
    q: Array,
    keys: Array,
    values: Array,
    positions: Array,
    settings: Settings,
    attn_mask: Array | None = None,
) -> Array:
    """Return ``softmax(scale q keys^T) values`` for every head, `[n, q, h, v]`.

    Written out because `jax.nn.dot_product_attention` wants values as wide as keys and has its
    softmax in float32 always. Many queries go in blocks, so that memory grows with t, not t^2.

    Args:
      q: queries `[n, q, h, k]` at `positions [q]` of the keys.
      keys: `[n, t, g, k]`.
      values: `[n, t, g, v]`.
      positions: used where the settings are causal: key j is seen from position i >= j.
      settings: scale and causality.
      attn_mask: booleans `[n or 1, q, t]`, True = may attend. A row that may attend to nothing
        attends to all alike.
    """
    n, count, h, k = q.shape
    t, g, v = keys.shape[1], keys.shape[2], values.shape[3]
    dtype = wide(q.dtype)

    def rows(q: Array, positions: Array, mask: Array | None) -> Array:
        grouped = q.reshape(n, -1, g, h // g, k)
        logits = jnp.einsum("nqgrk,ntgk->ngrqt", grouped, keys, preferred_element_type=dtype)
        logits = logits * settings.logit_scale
        allowed = None if mask is None else mask[:, None, None]
        if settings.causal:
            seen = positions[:, None] >= jnp.arange(t)[None]
            seen = seen[None, None, None]
            allowed = seen if allowed is None else allowed & seen
        if allowed is not None:
            logits = jnp.where(allowed, logits, jnp.finfo(dtype).min)
        weights = jax.nn.softmax(logits, axis=-1).astype(values.dtype)
        return jnp.einsum("ngrqt,ntgv->nqgrv", weights, values).reshape(n, -1, h, v)

    size = max(1, _BLOCK_ENTRIES // (n * h * t))
    if count <= size:
        return rows(q, positions, attn_mask)
    one: tuple[Array, ...] = (jnp.swapaxes(q, 0, 1), positions)
    if attn_mask is not None:
        one = (*one, jnp.swapaxes(attn_mask, 0, 1))

    def row(args: tuple[Array, ...]) -> Array:
        mask = args[2][:, None] if len(args) > 2 else None
        return rows(args[0][:, None], args[1][None], mask)[:, 0]

    return jnp.swapaxes(jax.lax.map(row, one, batch_size=size), 0, 1)


def mlp(params: Params, x: Array, settings: Settings) -> Array:
    """Return ``act(x in) out``, or ``(act(x gate) * (x in)) out`` where gated."""
    activation = ACTIVATIONS[settings.activation]
    hidden = linear(params, "mlp.in", x, settings)
    if settings.gated:
        hidden = activation(linear(params, "mlp.gate", x, settings)) * hidden
    else:
        hidden = activation(hidden)
    return linear(params, "mlp.out", hidden, settings)


def _plus(x: Array, bias: Array | None) -> Array:
    return x if bias is None else x + jnp.expand_dims(bias, range(x.ndim - 1))
