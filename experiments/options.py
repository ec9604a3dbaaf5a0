"""Parse the options of an experiment from text, check them, and describe them.

A `Config` is a flat frozen dataclass. Its docstring has a section ``Attributes:`` with a line
``name: meaning.`` for each option; ``NAME --help`` prints it.
"""

import dataclasses
import inspect
import re
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from slth_jax import checks


def split(texts: Sequence[str]) -> dict[str, str]:
    """Convert texts ``'name=value'`` to a dict ``{'name': 'value'}``."""
    named = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise checks.fail("--set", "of the form option=value", repr(text))
        named[name.replace("-", "_")] = value
    return named


def configure(
    presets: Mapping[str, Any],
    preset: str,
    options: Mapping[str, str],
    seeds: int | None,
    recorded: Mapping[str, Any] | None = None,
) -> Any:
    """Return an experiment's `Config`: a preset with some options replaced.

    Args:
      presets: a dict from names to configurations.
      preset: a name in `presets`.
      options: a dict from names of fields to values as text; entries of tuples are separated by
        commas.
      seeds: the number of seeds; None for the preset's number.
      recorded: the options in the config.json of a run that is repeated, which replace the preset's
        options; None if no run is repeated.

    Raises:
      ValueError: a preset or option is unknown, or a value is not allowed.
    """
    checks.choice("preset", preset, presets)
    config = presets[preset]
    hints = typing.get_type_hints(type(config))
    changes: dict[str, Any] = {}
    for name, value in (recorded or {}).items():
        checks.choice("option", name, hints)
        changes[name] = tuple(value) if isinstance(value, list) else value
    for name, text in options.items():
        checks.choice("option", name, hints)
        changes[name] = _parse(name, text, hints[name])
    if seeds is not None:
        changes["seeds"] = seeds
    checks.integer("seeds", changes.get("seeds", config.seeds), low=1)
    return dataclasses.replace(config, **changes)


def check(
    config: Any,
    *,
    least: Mapping[str, int],
    words: Mapping[str, Collection[str]] | None = None,
) -> None:
    """Refuse a `Config` if a value, or an entry of a tuple, is not allowed.

    Args:
      config: the configuration.
      least: a dict from names of options to the smallest allowed integer.
      words: a dict from names of options to the allowed values.
    """
    for name, low in least.items():
        for value in _entries(name, getattr(config, name)):
            checks.integer(name, value, low=low)
    for name, allowed in (words or {}).items():
        for value in _entries(name, getattr(config, name)):
            checks.choice(name, value, allowed)


def _entries(name: str, value: Any) -> tuple:
    if value == ():
        raise checks.fail(name, "at least one value", "none")
    return value if isinstance(value, tuple) else (value,)


def describe(config: Any) -> Iterator[str]:
    """Yield a line for each option of a `Config`: the option's name, type, value and meaning."""
    words = meanings(type(config))
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        yield f"  {field.name}={text}  ({type_name(hints[field.name])})"
        yield f"      {words.get(field.name, '')}"


def meanings(kind: type) -> dict[str, str]:
    """Return each attribute's description, from the docstrings of a dataclass and its bases."""
    words: dict[str, str] = {}
    for base in reversed(kind.__mro__[:-1]):
        _, _, section = inspect.cleandoc(base.__doc__ or "").partition("Attributes:\n")
        # A line that is indented more deeply continues the previous line.
        for line in re.sub(r"\n {4,}", " ", section).splitlines():
            names, colon, meaning = line.strip().partition(": ")
            if colon:
                words |= dict.fromkeys(names.split(", "), meaning)
    return words


def type_name(hint: Any) -> str:
    """Return a type as text for the user: 'int', 'str or none', 'float,float,...'."""
    inner = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        return f"{type_name(inner[0])},{type_name(inner[0])},..."
    return " or ".join("none" if k is type(None) else k.__name__ for k in inner or (hint,))


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
    raise checks.fail(f"option {name}", f"of type {type_name(hint)}", repr(text))
