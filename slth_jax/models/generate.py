"""Generate tokens with a key-value cache."""

from collections.abc import Collection, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from slth_jax import checks
from slth_jax.models.cache import extend, init_cache
from slth_jax.models.settings import Settings
from slth_jax.types import Key


def generate(
    params: Mapping[str, Array],
    settings: Settings,
    prompt: Sequence[int],
    length: int,
    *,
    temperature: float = 0.0,
    key: Key | None = None,
    stop: Collection[int] = (),
) -> list[int]:
    """Return `prompt` continued by up to `length` tokens.

    At temperature 0 the next token is the likeliest token. At higher temperatures the next token is
    ``argmax(logits / temperature + noise)``. The Gumbel noise is drawn with ``fold_in(key,
    position)``, so two models that are sampled with the same key see the same noise.

    Args:
      params, settings: see `decoder`.
      prompt: the tokens of the prompt, at least one.
      length: the number of tokens to add; fewer are added if the model's context ends or a token in
        `stop` is drawn.
      temperature: a number of at least 0; 0 takes the likeliest token.
      key: a typed PRNG key, required if the temperature is above 0.
      stop: tokens that end the text; they are not returned.

    Raises:
      ValueError: the prompt is empty or too long, a token is outside the vocabulary, or the
        required key is missing.
    """
    checks.record("settings", settings, Settings)
    checks.integer("length", length, low=0)
    checks.number("temperature", temperature, low=0)
    if isinstance(prompt, Sequence) and not prompt:
        raise checks.fail("prompt", "at least one token", "none")
    tokens = [
        checks.integer(f"prompt[{index}]", token, low=0, high=settings.vocab_size - 1)
        for index, token in enumerate(
            checks.array("prompt", np.asarray(prompt), ndim=1, kind="int").tolist()
        )
    ]
    if temperature > 0:
        if key is None:
            raise checks.fail("key", "given with a temperature above 0", "None")
        key = checks.key("key", key)
    checks.record("stop", stop, Collection)
    end = min(len(tokens) + length, settings.max_length)
    if len(tokens) > settings.max_length:
        raise checks.fail("prompt", f"at most {settings.max_length} tokens long", len(tokens))
    # The cache's length is a power of two, so that prompts of many lengths share a program.
    size = min(settings.max_length, max(64, 1 << (end - 1).bit_length()))
    cache = init_cache(settings, 1, size)
    logits, cache = extend(params, cache, np.asarray([tokens]), settings)
    while len(tokens) < end:
        scores = logits[0, -1]
        if not jnp.isfinite(scores).all():
            raise checks.fail("params", "of a network with finite logits", "NaN or infinite ones")
        if key is not None and temperature > 0:
            noise = jax.random.gumbel(jax.random.fold_in(key, len(tokens)), scores.shape)
            scores = scores / temperature + noise
        following = int(jnp.argmax(scores))
        if following in stop:
            break
        tokens.append(following)
        if len(tokens) < end:
            logits, cache = extend(params, cache, np.asarray([[following]]), settings)
    return tokens
