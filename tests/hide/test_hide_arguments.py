"""Functions of `hide` refuse objects of another kind in one line."""

import numpy as np
import pytest
from refusals import refusals

from slth_jax import hide

TOKENS = np.zeros((1, 4), np.int32)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: hide.logits(x, TOKENS), "model must be a model of `hide.of_target`"),
        (lambda x: hide.embeddings(x, TOKENS), "model must be a model of `hide.of_target`"),
        (lambda x: hide.of_target(x), "reader must be an open file"),
        (lambda x: hide.make_spec(x), "reader must be an open file"),
        (lambda x: hide.solve(x, None, "out"), "reader must be an open file"),
        (lambda x: hide.estimate(x, None), "reader must be an open file"),
    ],
)
@pytest.mark.parametrize("other", [np.ones(3), None, "model.bin"])
def test_other_objects(call, words, other):
    with refusals(f"^{words}.*, got (ndarray|NoneType|str)$"):
        call(other)
