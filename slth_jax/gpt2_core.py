"""GPT-2 as pure functions on named arrays (Radford et al. 2019; paper, section 5).

The parameters are one flat dictionary with the names and shapes of `gpt2_config`.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from slth_jax import checks
from slth_jax.gpt2_config import ACTIVATIONS, Config, matrix_shapes, vector_shapes
from slth_jax.types import Array, ArrayLike, Key

Params = dict[str, Array]


@functools.partial(jax.jit, static_argnames=("config", "dtype"))
def init(
    key: Key,
    config: Config,
    *,
    qk_scale: ArrayLike = 1.0,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> Params:
    """Draw GPT-2's initial weights, with query and key weights multiplied by `qk_scale`.

    Entries are ``N(0, init_sd^2)`` (`embedding_sd` for the embeddings); those of `h.attn.o` and
    `h.mlp.out` are further multiplied by ``(2 b)^(-1/2)``. Gains are 1, biases 0. Each matrix has
    its own key, folded from its place in `matrix_shapes`, so the draw of one does not depend on
    the others. Called outside of other compiled functions it is the same program every time, so
    the same bits.

    Args:
      key: a typed PRNG key.
      config: the model.
      qk_scale: may be traced; ``n_K^(1/4)`` in the paper's proposal, see `paper_qk_scale`.
      dtype: of the weights.
    """
    residual = config.init_sd / math.sqrt(2 * config.num_blocks)
    embedding = config.init_sd if config.embedding_sd is None else config.embedding_sd
    sds = {"wte": embedding, "wpe": embedding, "h.attn.o": residual, "h.mlp.out": residual}
    params = {}
    for index, (name, shape) in enumerate(matrix_shapes(config).items()):
        drawn = jax.random.normal(jax.random.fold_in(key, index), shape, dtype)
        params[name] = drawn * jnp.asarray(sds.get(name, config.init_sd), dtype)
        if name in ("h.attn.q", "h.attn.k"):
            params[name] *= jnp.asarray(qk_scale, dtype)
    for name, shape in vector_shapes(config).items():
        params[name] = jnp.full(shape, float(name.endswith("gain")), dtype)
    return params


def source(key: Key, *, qk_scale: float = 1.0, **settings: Any) -> Params:
    """Return `init` of the config with these `settings`: the source as tickets name it."""
    return init(key, Config(**settings), qk_scale=qk_scale)


def apply(
    params: Mapping[str, Array],
    tokens: ArrayLike,
    config: Config,
    *,
    dtype: jax.typing.DTypeLike = jnp.float32,
    remat: bool = False,
) -> Array:
    """Compute the logits of the next token.

    Args:
      params: as `init` makes them, masked or not.
      tokens: integers `[n, t]`, t at most `config.max_length`.
      config: the model.
      dtype: of the matrix products; norms and softmax are float32 always.
      remat: recompute each block in the backward pass instead of keeping its activations.

    Returns:
      Logits `[n, t, v]`, float32.

    Raises:
      ValueError: tokens of the wrong kind, too long, or (where not traced) outside the vocabulary.
    """
    return _apply(dict(params), _checked_tokens(tokens, config), config, jnp.dtype(dtype), remat)


def loss(
    params: Mapping[str, Array],
    tokens: ArrayLike,
    config: Config,
    *,
    dtype: jax.typing.DTypeLike = jnp.float32,
    remat: bool = False,
) -> Array:
    """Return the mean cross-entropy, in nats a token, of `tokens [n, t + 1]` given those before.

    Each row is t inputs and, one to the right, t targets.
    """
    tokens = checks.array("tokens", tokens, ndim=2, kind="int")
    logits = apply(params, tokens[:, :-1], config, dtype=dtype, remat=remat)
    picked = jnp.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - picked)


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _apply(params: Params, tokens: Array, config: Config, dtype: jnp.dtype, remat: bool) -> Array:
    cast = {name: value.astype(dtype) for name, value in params.items()}
    x = cast["wte"][tokens] + cast["wpe"][: tokens.shape[1]][None]
    block = functools.partial(_block, config=config)
    body = jax.checkpoint(block) if remat else block
    stacked = {name: value for name, value in cast.items() if name.startswith("h.")}
    x, _ = jax.lax.scan(lambda x, layer: (body(layer, x), None), x, stacked)
    x = _norm(x, cast["ln_f.gain"], cast["ln_f.bias"])
    return jnp.einsum("ntd,vd->ntv", x, cast["wte"], preferred_element_type=jnp.float32)


def _block(block: Mapping[str, Array], x: Array, *, config: Config) -> Array:
    """Apply one pre-norm block to `x [n, t, d]`."""
    n, t, d = x.shape
    hidden = _norm(x, block["h.ln_1.gain"], block["h.ln_1.bias"])
    q, k, v = (
        _linear(block, f"h.attn.{name}", hidden).reshape(n, t, config.num_heads, -1)
        for name in "qkv"
    )
    heads = jax.nn.dot_product_attention(q, k, v, is_causal=True)  # logits / sqrt(head width)
    x = x + _linear(block, "h.attn.o", heads.reshape(n, t, d))
    hidden = _norm(x, block["h.ln_2.gain"], block["h.ln_2.bias"])
    hidden = ACTIVATIONS[config.activation](_linear(block, "h.mlp.in", hidden))
    return x + _linear(block, "h.mlp.out", hidden)


def _linear(block: Mapping[str, Array], name: str, x: Array) -> Array:
    return jnp.einsum("nti,io->nto", x, block[name]) + block[f"{name}.bias"][None, None]


def _norm(x: Array, gain: Array, bias: Array) -> Array:
    """Layer normalisation over the last axis, in float32, epsilon 1e-5."""
    wide = x.astype(jnp.float32)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    normed = (centred * jax.lax.rsqrt(variance + 1e-5)).astype(x.dtype)
    return normed * gain[None, None] + bias[None, None]


def _checked_tokens(tokens: ArrayLike, config: Config) -> Array:
    tokens = checks.array("tokens", tokens, ndim=2, kind="int")
    if tokens.shape[1] > config.max_length:
        allowed = f"at most max_length = {config.max_length} long"
        raise checks.fail("tokens", allowed, f"{tokens.shape[1]}")
    if not isinstance(tokens, jax.core.Tracer) and tokens.size:
        low, high = int(np.min(tokens)), int(np.max(tokens))
        if low < 0 or high >= config.vocab_size:
            allowed = f"in [0, {config.vocab_size - 1}] for this vocabulary"
            raise checks.fail("tokens", allowed, f"{low} to {high}")
    return tokens
