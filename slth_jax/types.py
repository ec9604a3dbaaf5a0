"""Names for the kinds of values that the package passes around."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array
ArrayLike = jax.typing.ArrayLike
# A typed PRNG key, as `jax.random.key(seed)` makes it; never a raw uint32 pair.
Key = jax.Array
PyTree = Any
# What a trial is given (swept values) and what it returns (measurements), by name.
Hparams = Mapping[str, Any]
Metrics = Mapping[str, ArrayLike]


def _brief(kind: str, fields: Mapping[str, Any]) -> str:
    """Return ``kind(name=float32[2,8], ...)``: arrays by dtype and shape, not number by number."""

    def of(value: Any) -> str:
        if not (hasattr(value, "shape") and hasattr(value, "dtype")):
            return repr(value)
        return f"{value.dtype}[{','.join(map(str, value.shape))}]"

    return f"{kind}({', '.join(f'{name}={of(value)}' for name, value in fields.items())})"


class AttentionParams(NamedTuple):
    """Projections of multi-head attention; also their masks, as booleans of the same shapes.

    Letters as in `attention`: h heads, m input width, k key width, v value width, o output width.
    """

    w_q: Array  # [h, m, k]
    w_k: Array  # [h, m, k]
    w_v: Array  # [h, m, v]
    w_o: Array  # [h, v, o]

    @property
    def key_width(self) -> int | Array:
        """The k of ``1 / sqrt(k)``: the number of hidden units of queries and keys."""
        return self.w_q.shape[-1]

    @property
    def value_width(self) -> int | Array:
        """The number of hidden units of values."""
        return self.w_v.shape[-1]

    def __repr__(self) -> str:
        """Return the arrays by dtype and shape."""
        return _brief("AttentionParams", self._asdict())


@jax.tree_util.register_pytree_with_keys_class
class PaddedAttention(AttentionParams):
    """Projections with hidden units of zeros at the end, which know how many units are real.

    Four arrays to unpack, as `AttentionParams`; six to JAX: maps over weights and masks, `vmap`,
    stacking and changes of dtype keep the widths right, which are the counts of what is not zero
    in `k_units` and `v_units`.
    """

    k_units: Array  # bool [k], whether a unit of queries and keys is real
    v_units: Array  # bool [v], whether a unit of values is

    def __new__(cls, w_q, w_k, w_v, w_o, k_units, v_units):
        """Return the projections with what says which hidden units are real."""
        self = tuple.__new__(cls, (w_q, w_k, w_v, w_o))
        self.k_units, self.v_units = k_units, v_units
        return self

    @property
    def key_width(self) -> int | Array:
        """The number of real hidden units of queries and keys; traced where `k_units` is."""
        return jnp.count_nonzero(self.k_units, axis=-1)

    @property
    def value_width(self) -> int | Array:
        """The number of real hidden units of values; traced where `v_units` is."""
        return jnp.count_nonzero(self.v_units, axis=-1)

    def _replace(self, **changes) -> "PaddedAttention":
        return PaddedAttention(**(self._asdict() | self._units() | changes))

    def _units(self) -> dict[str, Array]:
        return {"k_units": self.k_units, "v_units": self.v_units}

    def __getnewargs__(self):
        """Return what copying and pickling need."""
        return (*self, self.k_units, self.v_units)

    def __repr__(self) -> str:
        """Return the arrays by dtype and shape."""
        return _brief("PaddedAttention", {**self._asdict(), **self._units()})

    def tree_flatten_with_keys(self):
        """Return the six arrays by name, and nothing static."""
        named = {**self._asdict(), **self._units()}
        return [(jax.tree_util.GetAttrKey(n), value) for n, value in named.items()], None

    @classmethod
    def tree_unflatten(cls, _, children) -> "PaddedAttention":
        """Return the projections of six arrays."""
        return cls(*children)


class MergedParams(NamedTuple):
    """What attention depends on: the two merged matrices of each head (paper, section 2)."""

    w_qk: Array  # [h, m, m], w_q w_k^T / sqrt(k)
    w_vo: Array  # [h, m, o], w_v w_o

    def __repr__(self) -> str:
        """Return the arrays by dtype and shape."""
        return _brief("MergedParams", self._asdict())
