"""Types and named tuples that the whole package uses."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

Array = jax.Array
ArrayLike = jax.typing.ArrayLike
# A typed PRNG key, as `jax.random.key(seed)` returns it; never a raw uint32 pair.
Key = jax.Array
PyTree = Any
# The tokens from which cross-attention computes keys and values; or a tuple of two arrays, the
# inputs of keys and the inputs of values.
Memory = ArrayLike | tuple[ArrayLike, ArrayLike]
# Dicts from name to value: a trial's arguments (swept values) and its results (metrics).
Hparams = Mapping[str, Any]
Metrics = Mapping[str, ArrayLike]


def _brief(kind: str, fields: Mapping[str, Any]) -> str:
    """Return a text ``kind(name=float32[2,8], ...)`` that shows arrays by dtype and shape."""

    def shown(value: Any) -> str:
        if not (hasattr(value, "shape") and hasattr(value, "dtype")):
            return repr(value)
        return f"{value.dtype}[{','.join(map(str, value.shape))}]"

    return f"{kind}({', '.join(f'{name}={shown(value)}' for name, value in fields.items())})"


class AttentionParams(NamedTuple):
    """The projections of multi-head attention, or their masks as booleans in the same shapes.

    Letters: h heads, m input width, k key width, v value width, o output width. In cross-attention
    the inputs of keys have width n, and the inputs of values have width l. In grouped-query
    attention there are g key/value heads, each of which serves h / g consecutive query heads. In
    ordinary self-attention n = l = m and g = h.
    """

    w_q: Float[Array, "h m k"]
    w_k: Float[Array, "g n k"]
    w_v: Float[Array, "g l v"]
    w_o: Float[Array, "h v o"]

    @property
    def key_width(self) -> int:
        """The k of ``1 / sqrt(k)``: the number of hidden units per head of queries and keys."""
        return self.w_q.shape[-1]

    @property
    def value_width(self) -> int:
        """The number of hidden units per head in the value projection."""
        return self.w_v.shape[-1]

    def __repr__(self) -> str:
        """Return a text with the dtype and shape of each array."""
        return _brief("AttentionParams", self._asdict())


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PaddedAttention:
    """Projections padded with zero hidden units to a static width, or masks of such projections.

    A hidden unit is padding if its entry of `k_units` (queries and keys) or `v_units` (values) is
    zero. For JAX an instance is a tree of six arrays. `vmap`, stacking, changes of dtype and
    products with masks do not change which hidden units are padding. An instance cannot be unpacked
    like a tuple, which prevents confusion with `AttentionParams`, whose widths are given by the
    shapes of the arrays.
    """

    # The type is `Any` because JAX also stores shapes and shardings in these fields.
    w_q: Any  # [h, m, k]
    w_k: Any  # [h, n, k]
    w_v: Any  # [h, l, v]
    w_o: Any  # [h, v, o]
    k_units: Any  # bool [k], False if a unit of queries and keys is padding
    v_units: Any  # bool [v], False if a unit of values is padding

    @property
    def key_width(self) -> Array:
        """The number of hidden units of queries and keys, without padding; may be traced."""
        return jnp.count_nonzero(self.k_units, axis=-1)

    @property
    def value_width(self) -> Array:
        """The number of hidden units in the value projection, without padding; may be traced."""
        return jnp.count_nonzero(self.v_units, axis=-1)

    def narrow(self, n_k: int, n_v: int) -> AttentionParams:
        """Return projections with only the first `n_k` and `n_v` hidden units."""
        return AttentionParams(
            self.w_q[..., :n_k], self.w_k[..., :n_k], self.w_v[..., :n_v], self.w_o[..., :n_v, :]
        )

    def __repr__(self) -> str:
        """Return a text with the dtype and shape of each array."""
        return _brief("PaddedAttention", vars(self))


# Projections with or without padding; functions that need the widths accept both.
Projections = AttentionParams | PaddedAttention


class Linear(NamedTuple):
    """A fully connected layer ``x w^T + b``, or ``x w^T`` if `b` is None."""

    w: Array  # [o, i]
    b: Array | None = None  # [o]


class Block(NamedTuple):
    """One transformer block: attention, and the layers of the ReLU network F."""

    attention: Projections
    layers: tuple[Linear, ...]


class MergedParams(NamedTuple):
    """The two matrices per head that attention depends on (paper, section 2)."""

    w_qk: Float[Array, "h m n"]  # w_q w_k^T / sqrt(k)
    w_vo: Float[Array, "h l o"]  # w_v w_o

    def __repr__(self) -> str:
        """Return a text with the dtype and shape of each array."""
        return _brief("MergedParams", self._asdict())
