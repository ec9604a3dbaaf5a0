"""Names for the kinds of values that the package passes around."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

Array = jax.Array
ArrayLike = jax.typing.ArrayLike
# A typed PRNG key, as `jax.random.key(seed)` makes it; never a raw uint32 pair.
Key = jax.Array
PyTree = Any
# What a trial is given (swept values) and what it returns (measurements), by name.
Hparams = Mapping[str, Any]
Metrics = Mapping[str, ArrayLike]


class AttentionParams(NamedTuple):
    """Projections of multi-head attention; also their masks, as booleans of the same shapes.

    Letters as in `attention`: h heads, m input width, k key width, v value width, o output width.
    """

    w_q: Array  # [h, m, k]
    w_k: Array  # [h, m, k]
    w_v: Array  # [h, m, v]
    w_o: Array  # [h, v, o]


class MergedParams(NamedTuple):
    """What attention depends on: the two merged matrices of each head (paper, section 2)."""

    w_qk: Array  # [h, m, m], w_q w_k^T / sqrt(k)
    w_vo: Array  # [h, m, o], w_v w_o
