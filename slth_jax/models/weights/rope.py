"""Rotary frequencies from the configuration of a model, as `transformers` computes them."""

import math
from collections.abc import Mapping
from typing import Any

from slth_jax import checks
from slth_jax.models.settings import rotary_frequencies

# The supported keys of each type of frequencies. All types may also have 'rope_theta' and
# 'partial_rotary_factor'.
_TYPES: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": (
        "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings",
    ),
    "yarn": (
        "factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim",
        "truncate", "original_max_position_embeddings",
    ),
}  # fmt: skip
KEYS = {
    "rope_parameters": None,
    "rope_scaling": None,
    "rope_theta": 10_000.0,
    "partial_rotary_factor": None,
    "original_max_position_embeddings": None,
}
"""Keys of a configuration that change the rotary frequencies, with their defaults."""


def frequencies(
    values: Mapping[str, Any], head_width: int, max_length: int
) -> tuple[tuple[float, ...], float]:
    """Return the k / 2 frequencies (radians per position) and the scale of cosine and sine.

    Args:
      values: the keys in `KEYS`. Parameters are read from `rope_scaling` (transformers 4) if it is
        given, else from `rope_parameters` (transformers 5). Both may contain the base `rope_theta`.
      head_width: the width k of a head.
      max_length: the model's original maximal length, used if the parameters do not contain it.

    Raises:
      ValueError: a type or a key is not supported, or a number is out of range.
    """
    where = "rope_scaling" if values["rope_scaling"] else "rope_parameters"
    rope = values[where] or {}
    if not isinstance(rope, dict):
        raise checks.fail(where, "a JSON object or null", repr(rope)[:80])
    kind = checks.choice("rope_type", rope.get("rope_type", rope.get("type", "default")), _TYPES)
    known = {"rope_type", "type", "rope_theta", "partial_rotary_factor", *_TYPES[kind]}
    if kind in ("default", "linear"):
        # This key has no effect on these types, but files of transformers 5 may contain it.
        known.add("original_max_position_embeddings")
    for key in rope.keys() - known:
        allowed = f"absent from {where} of type {kind!r}"
        raise checks.fail(repr(key)[:80], allowed, repr(rope[key])[:80])
    part = rope.get("partial_rotary_factor", values["partial_rotary_factor"])
    if part not in (None, 1.0):
        raise checks.fail("partial_rotary_factor", "1 (all of a head is rotated)", repr(part)[:80])
    base = _positive("rope_theta", rope.get("rope_theta", values["rope_theta"]))
    plain = rotary_frequencies(head_width, base)
    if kind == "default":
        return plain, 1.0
    factor = _positive("factor", rope.get("factor"))
    if kind == "linear":
        return tuple(f / factor for f in plain), 1.0
    length = values["original_max_position_embeddings"]
    if length is None:
        length = rope.get("original_max_position_embeddings", max_length)
    length = checks.integer("original_max_position_embeddings", length, low=1)
    if kind == "llama3":
        return _llama3(plain, rope, factor, length), 1.0
    return _yarn(plain, rope, factor, length, base), _yarn_scale(rope, factor)


def _positive(name: str, value: Any) -> float:
    return checks.number(name, value, low=1e-6, high=1e12)


def _llama3(
    plain: tuple[float, ...], rope: Mapping[str, Any], factor: float, length: int
) -> tuple[float, ...]:
    """Divide low frequencies by `factor`, keep high frequencies, and interpolate in between."""
    low = _positive("low_freq_factor", rope.get("low_freq_factor"))
    high = _positive("high_freq_factor", rope.get("high_freq_factor"))
    if low == high:
        raise checks.fail("high_freq_factor", "other than low_freq_factor", high)
    result = []
    for f in plain:
        wavelength = 2 * math.pi / f
        scaled = f / factor if wavelength > length / low else f
        if length / high <= wavelength <= length / low:
            share = (length / wavelength - low) / (high - low)
            scaled = (1 - share) * scaled / factor + share * scaled
        result.append(scaled)
    return tuple(result)


def _yarn(
    plain: tuple[float, ...], rope: Mapping[str, Any], factor: float, length: int, base: float
) -> tuple[float, ...]:
    """Divide low frequencies by `factor`, keep high ones, interpolate (YaRN, Peng et al. 2023)."""
    checks.number("rope_theta", base, low=1, open_low=True)
    width = 2 * len(plain)

    def dimension(name: str, default: float) -> float:
        rotations = _positive(name, rope.get(name) or default)
        return width * math.log(length / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low, high = dimension("beta_fast", 32), dimension("beta_slow", 1)
    truncate = rope.get("truncate", True)
    if not isinstance(truncate, bool):
        raise checks.fail("truncate", "true or false", repr(truncate)[:80])
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    if low == high:
        high += 0.001
    ramp = (min(max((i - low) / (high - low), 0.0), 1.0) for i in range(len(plain)))
    return tuple(f / factor * r + f * (1 - r) for f, r in zip(plain, ramp, strict=True))


def _yarn_scale(rope: Mapping[str, Any], factor: float) -> float:
    """Return the factor by which cosine and sine are multiplied."""
    if rope.get("attention_factor") is not None:
        return _positive("attention_factor", rope["attention_factor"])

    def mscale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if rope.get("mscale") and rope.get("mscale_all_dim"):
        names = ("mscale", "mscale_all_dim")
        above, below = (mscale(_positive(name, rope[name])) for name in names)
        return above / below
    return mscale(1.0)
