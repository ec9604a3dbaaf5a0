"""Variants of edge-popup: how scores are initialised, turned into masks and given gradients.

A variant is an object that contains the functions for these three steps; it is passed to `fit` in
`Masking`. The following variant ranks connections by |weight x score|::

    def masks(key, scores, weights, keep):
        sizes = jax.tree.map(jnp.multiply, scores, weights)
        return supermask.from_tree(sizes, keep)

    edge_popup.Variant(masks=masks)
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from slth_jax import checks, supermask
from slth_jax.types import ArrayLike, Key, PyTree

Init = Callable[[Key, tuple[int, ...], jax.typing.DTypeLike, int], Array]
Masks = Callable[..., PyTree]  # (key, scores, weights, keep)
Through = Callable[[Array, Array], Array]
SCOPES = ("array", "matrix", "global")


def kaiming_uniform(
    key: Key, shape: tuple[int, ...], dtype: jax.typing.DTypeLike, fan_in: int
) -> Float[Array, "..."]:
    """Draw ``U[-f, f]`` with ``f = fan_in^(-1/2)``: Kaiming uniform with a = sqrt(5)."""
    bound = 1 / math.sqrt(fan_in)
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def kaiming_normal(
    key: Key, shape: tuple[int, ...], dtype: jax.typing.DTypeLike, fan_in: int
) -> Float[Array, "..."]:
    """Draw ``N(0, 2 / fan_in)``."""
    return jax.random.normal(key, shape, dtype) * jnp.asarray(math.sqrt(2 / fan_in), dtype)


def largest(key: Key | None, scores: PyTree, weights: PyTree, keep: ArrayLike) -> PyTree:
    """Keep the connections with the largest |score|."""
    return supermask.from_tree(scores, keep)


def largest_raw(key: Key | None, scores: PyTree, weights: PyTree, keep: ArrayLike) -> PyTree:
    """Keep the connections with the largest score."""
    return supermask.from_tree(scores, keep, magnitude=False)


@dataclasses.dataclass(frozen=True)
class Variant:
    """A form of edge-popup.

    Attributes:
      masks: ``masks(key, scores, weights, keep) -> booleans``. `scores` and `weights` are one array
        each or, if `scope` is 'global', dictionaries of all arrays. `key` differs at every step, so
        that masks can be sampled.
      through: ``through(scores, mask)`` returns the mask in the dtype of the scores. The forward
        pass multiplies the weights by the result of `through`, and the derivative of `through`
        passes gradients to the scores.
      init: ``init(key, shape, dtype, fan_in)`` returns the initial scores.
      scope: the entries that are ranked together. 'array': all entries of an array, such as a
        convolution's kernel. 'matrix': all entries of one matrix, for arrays that are stacks of
        matrices (the last two axes). 'global': the entries of all arrays.
      keep_at: ``keep_at(keep, step)`` returns the fraction that training keeps at a step; None
        means `keep` at every step. Evaluations and tickets always keep the fraction `keep`.
      redraw_every: the number of steps between two re-drawings of dropped weights; 0 for never.
      redraw_rate: the fraction of the dropped weights that is re-drawn each time.
    """

    masks: Masks = largest
    through: Through = supermask.straight_through
    init: Init = kaiming_uniform
    scope: str = "array"
    keep_at: Callable[[ArrayLike, ArrayLike], ArrayLike] | None = None
    redraw_every: int = 0
    redraw_rate: float = 0.1

    def __post_init__(self):
        for name in ("masks", "through", "init"):
            checks.function(name, getattr(self, name))
        if self.keep_at is not None:
            checks.function("keep_at", self.keep_at)
        checks.choice("scope", self.scope, SCOPES)
        checks.integer("redraw_every", self.redraw_every, low=0)
        checks.number("redraw_rate", self.redraw_rate, low=0, high=1)

    def fan_in(self, shape: tuple[int, ...]) -> int:
        """Return the number of inputs per output: the product of all axes except the last.

        If the scope is 'matrix', return the length of the last axis but one: earlier axes are a
        stack.
        """
        return shape[-2] if self.scope == "matrix" else math.prod(shape[:-1])


VARIANTS = {
    "ramanujan": Variant(),
    "kaiming_local": Variant(init=kaiming_normal),
    "kaiming_global": Variant(init=kaiming_normal, scope="global"),
    "raw_score": Variant(masks=largest_raw, through=supermask.straight_through_raw),
    "iterand": Variant(redraw_every=300),
}
"""Named forms: the original (Ramanujan et al. 2020); Kaiming-normal scores ranked per array or
over the network (earlier code of the paper's authors); raw scores, of which the largest are kept;
and the original with weights re-drawn (IteRand, Chijiwa et al. 2021)."""


def variant_of(variant: Variant | str) -> Variant:
    """Return `variant` itself or, if it is a name, the variant of this name in `VARIANTS`."""
    if isinstance(variant, Variant):
        return variant
    return VARIANTS[checks.choice("variant", variant, VARIANTS)]
