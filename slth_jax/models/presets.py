"""Named networks: their settings and the distribution of their initial weights."""

import dataclasses
from typing import Any, NamedTuple

from slth_jax import checks
from slth_jax.models.initial import GPT2, LLAMA, Initial
from slth_jax.models.settings import Settings, make_settings


class Preset(NamedTuple):
    """A network's settings and initial distribution, for ``initialise(key, *preset)``."""

    settings: Settings
    initial: Initial


def _gpt2(num_blocks: int, num_heads: int, max_length: int = 1024, head_width: int = 64) -> Preset:
    """Return a GPT-2 with ReLU, as the paper describes its networks."""
    settings = make_settings(
        vocab_size=50257,
        width=head_width * num_heads,
        num_blocks=num_blocks,
        num_heads=num_heads,
        max_length=max_length,
        activation="relu",
    )
    return Preset(settings, GPT2)


def _llama(width: int, num_blocks: int, num_heads: int, num_kv_heads: int, **rest: Any) -> Preset:
    """Return a Llama: rotary positions, RMS normalisation, gated SiLU, no biases."""
    settings = make_settings(
        width=width,
        num_blocks=num_blocks,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        norm="rms",
        positions="rotary",
        activation="silu",
        gated=True,
        **rest,
    )
    return Preset(settings, LLAMA)


PRESETS = {
    "nano": _gpt2(num_blocks=2, num_heads=1, max_length=256, head_width=32),
    "tiny": _gpt2(num_blocks=2, num_heads=2, max_length=256),
    "mini": _gpt2(num_blocks=4, num_heads=8),
    "small": _gpt2(num_blocks=12, num_heads=12),
    "medium": _gpt2(num_blocks=24, num_heads=16),
    "stories260K": _llama(64, 5, 8, 4, vocab_size=512, hidden_width=172, max_length=512),
    "llama-small": _llama(
        768, 12, 12, 4, vocab_size=32000, hidden_width=2048, max_length=2048, tied=False
    ),
}
"""The GPT-2s of the paper ('mini' is published as `erwanf/gpt2-mini`) and two for CPUs ('nano',
'tiny'); the shape of Karpathy's smallest story model; a Llama with grouped queries that is as large
as GPT-2 small."""


def preset(name: str, *, width_multiplier: float = 1.0, **settings: Any) -> Preset:
    """Return the preset `name`, with `width_multiplier` times its width and number of heads.

    `width_multiplier` also multiplies the hidden width of the fully connected layers. The width of
    each head does not change, as in figure 7 of the paper. The keyword arguments `settings` replace
    fields of the preset's `Settings`.

    Raises:
      ValueError: the name is unknown, or the multiplied number of key/value heads is not whole.
    """
    base, initial = PRESETS[checks.choice("model", name, PRESETS)]
    checks.number("width_multiplier", width_multiplier, low=0, open_low=True)
    if width_multiplier != 1:
        groups = base.num_kv_heads
        if groups * width_multiplier != int(groups * width_multiplier):
            allowed = f"a multiple of 1/{groups} for model {name!r}"
            raise checks.fail("width_multiplier", allowed, width_multiplier)
        wider = ("width", "num_heads", "num_kv_heads", "hidden_width")
        base = dataclasses.replace(
            base, **{field: round(getattr(base, field) * width_multiplier) for field in wider}
        )
    if "vocab_size" in settings:
        settings.setdefault("outputs", settings["vocab_size"])
    return Preset(dataclasses.replace(base, **settings), initial)
