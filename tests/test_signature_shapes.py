"""The check of signatures itself: it finds a lie, and leaves refusals alone."""

from typing import Annotated, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from signature_shapes import WrongShape, checked, has_shapes

from slth_jax.types import Array, ArrayLike


class Pair(NamedTuple):
    left: Annotated[Array, "[p, n]"]
    right: Annotated[Array, "bool[n, r]"]


def pair(p, n, r):
    return Pair(jnp.ones((p, n)), jnp.ones((n, r), bool))


def rows(x: Annotated[ArrayLike, "[t, m]"], y=None) -> Annotated[Array, "[t]"]:
    return jnp.sum(x, axis=0 if y == "wrong" else 1)


def refuse(x: Annotated[ArrayLike, "[t, m]"]) -> Array:
    raise ValueError("x must be something else")


def swap(a: Pair, b: Annotated[Pair, "own"]) -> tuple[Annotated[Array, "[p, r]"], Pair]:
    return a.left @ a.right, a if a.left.shape == b.left.shape else b


def maybe(x: Annotated[ArrayLike, "int[q]"] | None = None) -> Annotated[Array, "[..., 2]"]:
    return jnp.zeros((3, 1, 2 if x is None else len(x)))


def test_true_signatures_pass_and_lies_are_found():
    assert checked(rows)(np.ones((2, 3))).shape == (2,)
    with pytest.raises(WrongShape, match=r"rows: return says \[t\], but is float32\[3\]"):
        checked(rows)(np.ones((2, 3)), y="wrong")
    with pytest.raises(WrongShape, match=r"rows: x says \[t, m\]"):
        checked(rows)(np.ones((2, 3, 4)))
    assert checked(maybe)().shape == (3, 1, 2)
    with pytest.raises(WrongShape, match=r"return says \[\.\.\., 2\]"):
        checked(maybe)(jnp.arange(3))
    with pytest.raises(WrongShape, match=r"x says int\[q\], but is float32"):
        checked(maybe)(jnp.ones(2))


def test_records_share_letters_unless_they_have_their_own():
    assert checked(swap)(pair(2, 3, 4), pair(2, 3, 4))[0].shape == (2, 4)
    with pytest.raises(WrongShape, match=r"swap: return\[1\].left"):
        checked(swap)(pair(2, 3, 4), pair(5, 6, 7))
    with pytest.raises(WrongShape, match=r"swap: a.right says bool\[n, r\]"):
        checked(swap)(pair(2, 3, 4)._replace(right=jnp.ones((3, 4))), pair(2, 3, 4))


def test_a_call_that_refuses_its_input_is_left_alone():
    with pytest.raises(ValueError, match="something else"):
        checked(refuse)(np.ones(3))
    assert has_shapes(refuse) and has_shapes(swap) and not has_shapes(pair)
