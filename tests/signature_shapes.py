"""Shapes in the library's signatures, checked at every call while tests run.

The library writes ``x: Annotated[ArrayLike, "[t, m]"]`` or ``"bool[..., n]"``: a kind and the
axes. `install` wraps every function of the library that says so: what a call was given and what it
returned must have these shapes, a letter meaning one number in one call. Calls that raise are left
alone: refusing bad input is their own business. A record (NamedTuple) whose fields have shapes
shares its letters with the call; `Annotated[Record, "own"]` gives it letters of its own.
"""

import functools
import importlib
import inspect
import pkgutil
import re
import sys
import types
import typing

import jax
import jaxtyping
import numpy as np

KINDS = {
    "": jaxtyping.Shaped,
    "bool": jaxtyping.Bool,
    "float": jaxtyping.Float,
    "float32": jaxtyping.Float32,
    "int": jaxtyping.Integer,
    "int32": jaxtyping.Int32,
    "uint8": jaxtyping.UInt8,
}


class WrongShape(AssertionError):
    """A call went well whose shapes are not those of its signature."""


def install(package: str) -> None:
    """Import all of a package and put checking functions in the place of those with shapes."""
    root = importlib.import_module(package)
    for found in pkgutil.walk_packages(root.__path__, f"{package}."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)
    checking: dict[int, tuple] = {}
    inside = [m for name, m in sys.modules.items() if name.split(".")[0] == package]
    for module in inside:
        for name, value in list(vars(module).items()):
            if not inspect.isfunction(value) or not value.__module__.startswith(package):
                continue
            if id(value) not in checking and has_shapes(value):
                checking[id(value)] = (value, checked(value))
            if id(value) in checking:
                setattr(module, name, checking[id(value)][1])


def has_shapes(function) -> bool:
    """Return whether a signature says a shape, directly or through the fields of a record."""
    return any(_says(hint) for hint in _hints(function).values())


def checked(function):
    """Return `function` with its arguments and its result compared with its signature."""
    hints, signature = _hints(function), inspect.signature(function)

    @functools.wraps(function)
    def call(*args, **kwargs):
        result = function(*args, **kwargs)
        named = dict(signature.bind(*args, **kwargs).arguments)
        with jaxtyping.jaxtyped("context"):
            for name, value in [*named.items(), ("return", result)]:
                if name in hints:
                    where = f"{function.__module__}.{function.__qualname__}: {name}"
                    _check(where, value, hints[name])
        return result

    return call


def _check(where: str, value, hint) -> None:
    """Compare a value with a hint; raise `WrongShape`."""
    base, *texts = typing.get_args(hint) if typing.get_origin(hint) is typing.Annotated else (hint,)
    if value is None or not _says(hint):
        return
    if not texts and typing.get_origin(base) in (typing.Union, types.UnionType):
        of_arrays = [one for one in typing.get_args(base) if _says(one)]
        # Of several records the one that it is; of arrays there is one.
        hint = next((one for one in of_arrays if _is(value, one)), of_arrays[0])
        _check(where, value, hint)
    elif not texts and typing.get_origin(base) is tuple:
        for index, (entry, one) in enumerate(zip(value, typing.get_args(base), strict=False)):
            _check(f"{where}[{index}]", entry, one)
    elif _fields(base) and "own" in texts:
        with jaxtyping.jaxtyped("context"):
            _check(where, value, base)
    elif _fields(base):
        if _is(value, base):
            for name, one in _fields(base).items():
                _check(f"{where}.{name}", getattr(value, name), one)
    elif _shaped(value):
        (text,) = texts
        kind, axes = re.fullmatch(r"(\w*)\[(.*)\]", text).groups()
        dtype = value.dtype if hasattr(value, "dtype") else np.asarray(value).dtype
        like = jax.ShapeDtypeStruct(np.shape(value), dtype)
        said = KINDS[kind][jax.ShapeDtypeStruct, axes.replace(",", " ")]
        if not isinstance(like, said):
            raise WrongShape(f"{where} says {text}, but is {dtype}{list(like.shape)}")


def _shaped(value) -> bool:
    return hasattr(value, "shape") or isinstance(value, (bool, int, float, complex, list))


def _is(value, hint) -> bool:
    base = typing.get_args(hint)[0] if typing.get_origin(hint) is typing.Annotated else hint
    return isinstance(base, type) and isinstance(value, base)


@functools.cache
def _fields(kind) -> dict:
    """Return the hints of a NamedTuple's fields where any of them says a shape."""
    if not (isinstance(kind, type) and hasattr(kind, "_fields")):
        return {}
    hints = _hints(kind)
    return hints if any(map(_says, hints.values())) else {}


def _says(hint) -> bool:
    """Return whether a hint holds a shape."""
    base, *texts = typing.get_args(hint) if typing.get_origin(hint) is typing.Annotated else (hint,)
    if any(isinstance(text, str) and "[" in text for text in texts) or _fields(base):
        return True
    if typing.get_origin(base) in (typing.Union, types.UnionType, tuple):
        return any(map(_says, typing.get_args(base)))
    return False


def _hints(what) -> dict:
    try:
        return typing.get_type_hints(what, include_extras=True)
    except NameError:  # a name that only type checkers import
        return {}
