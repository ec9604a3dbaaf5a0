"""A key-value cache, with which a network reads a few tokens at a time."""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from slth_jax import checks
from slth_jax.models import decoder
from slth_jax.models.layers import Params
from slth_jax.models.settings import Settings
from slth_jax.types import ArrayLike


class Cache(NamedTuple):
    """A pytree with the keys and values of earlier tokens, and with space for more tokens."""

    keys: Float[Array, "b n length g k"]
    values: Float[Array, "b n length g v"]
    used: Int[Array, ""]  # the number of tokens read so far

    def __repr__(self) -> str:
        return f"Cache(keys {self.keys.shape}, values {self.values.shape}, used {self.used})"


def init_cache(
    settings: Settings, n: int, length: int, *, dtype: jax.typing.DTypeLike = jnp.float32
) -> Cache:
    """Return an empty cache for `n` sequences of at most `length` tokens.

    Raises:
      ValueError: the network is not causal, or `length` exceeds its `max_length`.
    """
    if not settings.causal:
        raise checks.fail("settings", "causal for a key-value cache", "causal=False")
    checks.integer("n", n, low=1)
    checks.integer("length", length, low=1, high=settings.max_length)
    shape = (settings.num_blocks, n, length, settings.num_kv_heads)
    keys = jnp.zeros((*shape, settings.head_width), dtype)
    return Cache(keys, jnp.zeros((*shape, settings.value_width), dtype), jnp.int32(0))


def extend(
    params: Params, cache: Cache, tokens: ArrayLike, settings: Settings
) -> tuple[Float[Array, "n t outputs"], Cache]:
    """Read `tokens [n, t]` after the tokens in the cache; return their logits and the new cache.

    Up to round-off, the logits equal those that `apply` computes for the whole sequence. Matrix
    products are computed in the dtype of the cache.

    Raises:
      ValueError: `decoder.apply` refuses the tokens, or the cache lacks space for them. If
        `cache.used` is traced, the space cannot be checked, and tokens beyond the space overwrite
        the last tokens of the cache.
    """
    tokens = decoder.check_tokens(tokens, settings)
    decoder.check_params(params, settings)
    n, length = cache.keys.shape[1:3]
    used = checks.concrete(cache.used)
    if tokens.shape[0] != n:
        raise checks.fail("tokens", f"{n} rows as the cache has", tokens.shape[0])
    if tokens.shape[1] + (0 if used is None else int(used)) > length:
        allowed = f"few enough for a cache of {length} tokens, {used} of them used"
        raise checks.fail("tokens", allowed, tokens.shape[1])
    return _extend(dict(params), cache, tokens, settings)


@functools.partial(jax.jit, static_argnames="settings")
def _extend(
    params: Params, cache: Cache, tokens: Int[Array, "n t"], settings: Settings
) -> tuple[Float[Array, "n t outputs"], Cache]:
    chex.assert_shape(cache.keys, (settings.num_blocks, len(tokens), None, None, None))
    chex.assert_equal_shape_prefix((cache.keys, cache.values), 4)
    ends, stacked = decoder.split(params, cache.keys.dtype)
    positions = cache.used + jnp.arange(tokens.shape[1])

    def body(x: Array, block: tuple[Params, Array, Array]) -> tuple[Array, tuple[Array, Array]]:
        params, keys, values = block
        return decoder.advance(params, x, positions, settings, past=(keys, values))

    x = decoder.embed(ends, tokens, settings, start=cache.used)
    x, (keys, values) = jax.lax.scan(body, x, (stacked, cache.keys, cache.values))
    used = cache.used + tokens.shape[1]
    return decoder.unembed(ends, x, settings), Cache(keys, values, used)
