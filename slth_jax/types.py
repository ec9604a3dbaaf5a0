"""Names for the kinds of values that the package passes around."""

from collections.abc import Mapping
from typing import Any

import jax

Array = jax.Array
ArrayLike = jax.typing.ArrayLike
# A typed PRNG key, as `jax.random.key(seed)` makes it; never a raw uint32 pair.
Key = jax.Array
PyTree = Any
# What a trial is given (swept values) and what it returns (measurements), by name.
Hparams = Mapping[str, Any]
Metrics = Mapping[str, ArrayLike]
