"""The experiments by name, and how a configuration is put together."""

import dataclasses
import importlib
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from slth_jax import checks, construction, initializers

EXPERIMENTS: dict[str, str] = {
    "hidden-dim": "experiments.theory.hidden_dim",
    "input-length": "experiments.theory.input_length",
    "blocks": "experiments.theory.blocks",
    "trained-target": "experiments.theory.trained_target",
    "language": "experiments.language",
    "weight-scale": "experiments.weight_scale",
}
"""Name to module."""

REPRODUCE = ("hidden-dim", "input-length", "blocks")
"""What `reproduce` runs by default: figures 4, 5 and 6 of the paper."""


def load(name: str) -> types.ModuleType:
    """Import the module of the experiment `name`."""
    checks.choice("experiment", name, EXPERIMENTS)
    return importlib.import_module(EXPERIMENTS[name])


def configure(
    module: types.ModuleType, preset: str, options: Mapping[str, str], seeds: int | None
) -> Any:
    """Return the experiment's `Config`: a preset with some options replaced.

    Args:
      module: an experiment.
      preset: one of its `PRESETS`.
      options: values by field name, as typed by the user; tuples are separated by commas.
      seeds: replaces the field `seeds`.

    Raises:
      ValueError: an unknown preset or option, or a value of the wrong type.
    """
    checks.choice("preset", preset, module.PRESETS)
    config = module.PRESETS[preset]
    hints = typing.get_type_hints(type(config))
    changes: dict[str, Any] = {}
    for name, text in options.items():
        checks.choice("option", name, hints)
        changes[name] = _parse(name, text, hints[name])
    if seeds is not None:
        changes["seeds"] = checks.integer("seeds", seeds, low=1)
    config = dataclasses.replace(config, **changes)
    # An experiment may know more about its options than their types.
    if hasattr(module, "check"):
        module.check(config)
    return config


def check_theory(config: Any, *, least_width: int) -> None:
    """Refuse options of the theory's experiments that no trial could run with.

    `widths`, `lengths`, `length`, `test_sequences`, `epochs`, `sources` and `construction` are
    looked at where the configuration has them.
    """
    low = {"widths": least_width, "max_blocks": 1, "query_rows": 0, "target_seed": 0}
    counts = ("lengths", "length", "test_sequences", "epochs", "attention_units", "relu_units")
    low |= dict.fromkeys(counts, 1)
    words = {"sources": tuple(initializers.ATTENTION), "construction": construction.CONSTRUCTIONS}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        values = value if isinstance(value, tuple) else (value,)
        if field.name in low and not values:
            raise checks.fail(field.name, "at least one number", "none")
        for one in values:
            if field.name in low:
                checks.integer(field.name, one, low=low[field.name])
            elif field.name in words:
                checks.choice(field.name, one, words[field.name])


def parse_options(texts: Sequence[str]) -> dict[str, str]:
    """Return ``{'name': 'value'}`` from ``['name=value']``."""
    options = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise checks.fail("--set", "of the form option=value", repr(text))
        options[name.replace("-", "_")] = value
    return options


def _parse(name: str, text: str, hint: Any) -> Any:
    """Return `text` as a value of type `hint`: bool, int, float, str, a union or tuple of them."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        return tuple(_parse(name, part, arguments[0]) for part in text.split(",") if part)
    for kind in arguments or (hint,):
        if kind is type(None):
            if text.lower() in ("none", ""):
                return None
        elif kind is bool:
            if text.lower() in ("true", "false"):
                return text.lower() == "true"
        else:
            try:
                return kind(text)
            except ValueError:
                continue
    words = " or ".join(getattr(kind, "__name__", str(kind)) for kind in arguments or (hint,))
    raise checks.fail(f"option {name}", f"of type {words}", repr(text))
