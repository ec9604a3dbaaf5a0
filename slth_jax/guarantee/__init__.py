"""Bounds on the error of a ticket, computed from its weights and masks.

The error is ``max_i ||ticket(x)_i - target(x)_i||``, the largest distance between two corresponding
rows of the outputs.

The bound `guaranteed_error` holds for all inputs whose rows have at most a given norm, and
`guaranteed_error_on` holds only for the inputs that are passed to it. `guarantee` and
`guarantee_on` return the same bounds in more detail. All of these functions compare products of
weight matrices (query times key, value times output) of ticket and target, in NumPy float64
(`pairs`). The proofs are in ``docs/guarantee.md``.
"""

from slth_jax.guarantee.all_inputs import Guarantee, guarantee, guaranteed_error, is_vacuous
from slth_jax.guarantee.given_inputs import OnInputs, guarantee_on, guaranteed_error_on

__all__ = [
    "Guarantee",
    "OnInputs",
    "guarantee",
    "guarantee_on",
    "guaranteed_error",
    "guaranteed_error_on",
    "is_vacuous",
]
