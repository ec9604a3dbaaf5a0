"""Validate arguments before JAX traces anything.

Every error message is one line that contains the argument's name, the allowed values and the value
received::

    keep must be a number in (0, 1], got 1.5
"""

import math
from collections.abc import Collection, Sequence
from types import UnionType
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from slth_jax.types import Array, ArrayLike, Key

_LONGEST = 300  # characters of a received value in a message

_KINDS: dict[str, tuple[tuple[Any, ...], str]] = {
    "float": ((jnp.floating,), "a floating-point array"),
    "wide": ((jnp.float32, jnp.float64), "of dtype float32 or float64"),
    "factor": ((jnp.float32, jnp.float64), "of dtype float32 or float64"),
    "bool": ((jnp.bool_,), "a boolean array"),
    "int": ((jnp.integer,), "an integer array"),
}


# A sum of 4,096 products of two such entries stays below float32's limit of 3.4e38.
_LARGEST_FACTOR = 1e17


def fail(name: str, allowed: str, received: Any) -> ValueError:
    """Return a `ValueError` with the message ``{name} must be {allowed}, got {received}``.

    The message is one line: control characters are escaped, and a long `received` is cut.
    """
    return ValueError(one_line(f"{name} must be {allowed}, got {_brief(str(received))}"))


def instance(name: str, value: Any, kind: type, allowed: str) -> None:
    """Refuse a value that is not an instance of `kind`; `allowed` describes the allowed values."""
    if not isinstance(value, kind):
        raise fail(name, allowed, type(value).__name__)


def one_line(text: str) -> str:
    """Return `text` as one line, with single spaces and with control characters escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(text.split()))


def _brief(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def record(name: str, value: Any, kind: type | UnionType) -> Any:
    """Return `value`, which must be an instance of the type (or union of types) `kind`."""
    if not isinstance(value, kind):
        allowed = " or ".join(part.__name__ for part in get_args(kind) or (kind,))
        raise fail(name, allowed, f"{type(value).__name__} {value!r}")
    return value


def sequence(name: str, value: Any, kind: type | UnionType = object) -> Sequence[Any]:
    """Return `value`, which must be a sequence (such as a list or tuple) of instances of `kind`."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise fail(name, "a list or tuple", f"{type(value).__name__} {value!r}")
    for index, entry in enumerate(value):
        record(f"{name}[{index}]", entry, kind)
    return value


def different(name: str, values: Sequence[Any]) -> Sequence[Any]:
    """Return `values`; refuse an empty sequence or one that contains two equal values."""
    if not values or any(value in values[:index] for index, value in enumerate(values)):
        raise fail(name, "different values, at least one", values)
    return values


def function(name: str, value: Any) -> Any:
    """Return `value`, which must be callable."""
    if not callable(value):
        raise fail(name, "a function", f"{type(value).__name__} {value!r}")
    return value


def key(name: str, value: Any) -> Key:
    """Return `value` as a typed PRNG key; convert a uint32 pair from `jax.random.PRNGKey`."""
    dtype = getattr(value, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key) and value.shape == ():
        return value
    if dtype == np.uint32 and value.shape == (2,):
        return jax.random.wrap_key_data(value, impl="threefry2x32")
    raise fail(name, "a key, jax.random.key(seed)", f"{type(value).__name__} {value!r}")


def number(
    name: str,
    value: Any,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    open_low: bool = False,
    open_high: bool = False,
) -> float:
    """Return `value` as a finite float that lies between `low` and `high`.

    `low` itself is excluded if `open_low` is true, and `high` itself if `open_high` is true.
    """
    left = "(" if open_low or low == -math.inf else "["
    right = ")" if open_high or high == math.inf else "]"
    allowed = f"a number in {left}{low:g}, {high:g}{right}"
    value = _scalar(value)
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        raise fail(name, allowed, repr(value))
    try:
        converted = float(value)
    except OverflowError as error:
        raise fail(name, allowed, value) from error
    below = value <= low if open_low else value < low
    above = value >= high if open_high else value > high
    if not math.isfinite(converted) or below or above:
        raise fail(name, allowed, value)
    return converted


def integer(name: str, value: Any, *, low: int, high: int | None = None) -> int:
    """Return `value` as an int that lies between `low` and `high`, both included."""
    allowed = f"an integer >= {low}" if high is None else f"an integer in [{low}, {high}]"
    value = _scalar(value)
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise fail(name, allowed, repr(value))
    if value < low or (high is not None and value > high):
        raise fail(name, allowed, value)
    return int(value)


def _scalar(value: Any) -> Any:
    """Convert a concrete array without dimensions to a number; return other values unchanged."""
    plain = isinstance(value, (np.ndarray, jax.Array)) and not isinstance(value, jax.core.Tracer)
    if not plain or value.shape or not jnp.issubdtype(value.dtype, np.number):
        return value
    wide = float if jnp.issubdtype(value.dtype, np.inexact) else int  # bfloat16 among them
    return np.asarray(value).astype(wide).item()


def choice(name: str, value: Any, allowed: Collection[str]) -> str:
    """Return `value`, which must be one of the words in `allowed`."""
    if not isinstance(value, str) or value not in allowed:
        raise fail(name, "one of " + ", ".join(map(repr, allowed)), repr(value))
    return value


def shard(value: str | None) -> tuple[int, int]:
    """Parse 'i/n' (part i of n parts, counted from 0) as (i, n); return (0, 1) for None."""
    if value is None:
        return 0, 1
    index, slash, count = str(value).partition("/")
    if not (slash and index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise fail("shard", "'i/n' with 0 <= i < n", repr(value))
    return int(index), int(count)


def concrete(value: ArrayLike) -> np.ndarray | None:
    """Return `value` as a NumPy array, or None if this process cannot read its entries.

    The entries cannot be read under a JAX transformation, or if the array is spread over several
    processes.
    """
    if isinstance(value, jax.core.Tracer):
        return None
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
        return None
    return np.asarray(value)


def array(
    name: str,
    value: ArrayLike,
    *,
    ndim: int | None = None,
    min_ndim: int = 0,
    shape: Sequence[int | None] | None = None,
    kind: str = "float",
    finite: bool = True,
) -> Array:
    """Return `value` as a JAX array after a check of its rank, shape, dtype and entries.

    NumPy arrays and lists of float64 are rounded to float32 without a warning while JAX's 64-bit
    mode is off. This rounding is the library's only special treatment of float64.

    Args:
      name: the argument's name, for the error message.
      value: any argument of `jnp.asarray`.
      ndim: the exact rank; None if any rank is allowed.
      min_ndim: the least rank.
      shape: the exact shape; an entry is None if its axis may have any size.
      kind: the allowed dtypes: 'float', 'wide' (float32 or float64, as subset sums need), 'factor'
        (as 'wide', and entries must be at most 1e17 in magnitude, because products of two entries
        are summed), 'bool' or 'int'.
      finite: whether to refuse NaN and infinities. Under a JAX transformation values are not known,
        and therefore not checked.

    Raises:
      ValueError: the array fails a check.
    """
    given: Any = value if hasattr(value, "dtype") else np.asarray(value)
    if given.dtype == np.float64 and not isinstance(given, jax.Array):
        with np.errstate(over="ignore"):  # infinities are refused below
            given = np.asarray(given).astype(jax.dtypes.canonicalize_dtype(given.dtype))
    if isinstance(given, np.ndarray) and not given.dtype.isnative:
        given = given.astype(given.dtype.newbyteorder("="))
    dtype = given.dtype
    allowed, words = _KINDS[kind]
    if not any(jnp.issubdtype(dtype, parent) for parent in allowed):
        raise fail(name, words, f"dtype {dtype}")
    dims = tuple(jnp.shape(given))
    if shape is not None:
        if len(dims) != len(shape) or any(
            size is not None and size != dim for size, dim in zip(shape, dims, strict=True)
        ):
            expected = ", ".join("any" if size is None else str(size) for size in shape)
            raise fail(name, f"of shape ({expected})", f"shape {dims}")
    elif ndim is not None and len(dims) != ndim:
        raise fail(name, f"an array of {ndim} dimensions", f"shape {dims}")
    elif len(dims) < min_ndim:
        raise fail(name, f"an array of at least {min_ndim} dimensions", f"shape {dims}")
    known = concrete(given) if finite and kind in ("float", "wide", "factor") else None
    if known is not None:
        refuse_nonfinite(name, known)
        largest = float(np.max(np.abs(known), initial=0)) if kind == "factor" else 0.0
        if largest > _LARGEST_FACTOR:
            raise fail(name, f"at most {_LARGEST_FACTOR:g} in magnitude", f"{largest:.3g}")
    return jnp.asarray(given)


def finite_result(result: Array) -> Array:
    """Return `result`; raise an error if an entry overflowed (not checked while JAX traces)."""
    known = not isinstance(result, jax.core.Tracer) and result.is_fully_addressable
    if known and not jnp.isfinite(result).all():
        allowed = f"small enough for a finite result in {result.dtype}"
        raise fail("the arguments", allowed, "an overflow")
    return result


def refuse_nonfinite(name: str, values: np.ndarray) -> None:
    """Refuse NaN and infinities."""
    count = int(np.sum(~np.isfinite(values)))
    if count:
        raise fail(name, "finite", f"{count} NaN or infinite of {values.size} entries")
