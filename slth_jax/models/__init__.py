"""Transformers as pure functions of named weight arrays, without weight masks.

`settings` describes a network, `initial` draws its initial weights, and `presets` provides named
settings and weights. `layers` and `decoder` compute logits, `encoder` computes embeddings of texts,
`cache` computes logits token by token, and `generate` continues a prompt. `weights` reads and
writes files block by block; `tokens` converts text to tokens and back.
"""

from slth_jax.models import cache, decoder, tokens, weights
from slth_jax.models.cache import extend, init_cache
from slth_jax.models.decoder import apply, loss
from slth_jax.models.encoder import embeddings
from slth_jax.models.generate import generate
from slth_jax.models.initial import Initial, initialise, num_parameters
from slth_jax.models.presets import PRESETS, Preset, preset
from slth_jax.models.settings import ACTIVATIONS, Settings, make_settings, rotary_frequencies

__all__ = [
    "ACTIVATIONS",
    "PRESETS",
    "Initial",
    "Preset",
    "Settings",
    "apply",
    "cache",
    "decoder",
    "embeddings",
    "extend",
    "generate",
    "init_cache",
    "initialise",
    "loss",
    "make_settings",
    "num_parameters",
    "preset",
    "rotary_frequencies",
    "tokens",
    "weights",
]
