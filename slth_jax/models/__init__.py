"""Pre-norm transformers as one family of pure functions; nothing here knows of masks.

`settings` is the shape, `initial` how a network starts, `presets` both by name; `layers` and
`decoder` compute logits from named arrays, `cache` does so token by token, and `generate` continues
a prompt with it; `weights` reads and writes files, block by block, and `tokens` is text to tokens
and back.
"""

from slth_jax.models import cache, decoder, tokens, weights
from slth_jax.models.cache import extend, init_cache
from slth_jax.models.decoder import apply, loss
from slth_jax.models.generate import generate
from slth_jax.models.initial import Initial, initialise, num_parameters
from slth_jax.models.presets import PRESETS, Preset, preset
from slth_jax.models.settings import ACTIVATIONS, Settings, rotary_frequencies

__all__ = [
    "ACTIVATIONS",
    "PRESETS",
    "Initial",
    "Preset",
    "Settings",
    "apply",
    "cache",
    "decoder",
    "extend",
    "generate",
    "init_cache",
    "initialise",
    "loss",
    "num_parameters",
    "preset",
    "rotary_frequencies",
    "tokens",
    "weights",
]
