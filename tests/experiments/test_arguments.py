"""Every public function with empty arrays, numbers near float32's largest, and negative sizes.

A call is refused in one line that names an argument, or has a result without NaN. The functions and
arguments that they accept are those of the fuzzer, which draws such values at random.
"""

import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import signatures_unchecked

from experiments.fuzz.arguments import TABLE
from slth_jax.storage import CheckpointError

LARGEST = 3e38
# Words of a refusal for several arguments at once, or for one that is made of them.
NAMES = {"arguments", "weights", "mask", "gradient"}
# A user's network and loss raise their own errors.
OWN = {("fit", "params"), ("_masked_call", "model")}
SLOW = {"find_width", "fit", "run", "prune_attention", "prune_relu_layer"}


def is_array(leaf):
    plain = isinstance(leaf, np.ndarray | jax.Array) and np.ndim(leaf)
    return plain and not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def variants(value):
    """Yield the values in the place of `value`, each with a name."""
    if isinstance(value, int) and not isinstance(value, bool):
        yield "negative", -1
    if isinstance(value, float):
        yield "largest", LARGEST
        yield "negative", -1.0
    if isinstance(value, tuple) and value and all(type(entry) is int for entry in value):
        yield "negative", (-1,) * len(value)
    leaves, tree = jax.tree.flatten(value)
    for index in filter(lambda index: is_array(leaves[index]), range(len(leaves))):
        for name, changed in changes(np.asarray(leaves[index])):
            leaf = [*leaves[:index], changed, *leaves[index + 1 :]]
            yield f"leaf {index} {name}", jax.tree.unflatten(tree, leaf)


def changes(array):
    for axis in range(array.ndim):
        yield f"empty along {axis}", np.take(array, [], axis)
    if array.dtype == np.float32:
        yield "largest", np.full_like(array, LARGEST)
        single = array.copy()
        single.flat[0] = LARGEST
        yield "one largest", single
    if array.dtype == bool:
        yield "no booleans", array.astype(np.float32) / 2
    if array.dtype.kind == "i":
        yield "negative", array - 1000


def fault(function, accepted):
    """Return the fault of a call, or None."""
    try:
        with np.errstate(all="ignore"):
            result = function(**accepted)
    except (ValueError, CheckpointError) as error:
        line = str(error)
        words = set(re.findall(r"\w+", line.partition(" must ")[0]))
        known = {*inspect.signature(function).parameters, *accepted} | NAMES
        named = "\n" not in line and words & known
        return None if named else f"refused: {line}"
    except Exception as error:
        return f"trace: {type(error).__name__}: {error}"
    leaves = [leaf for leaf in jax.tree.leaves(result) if isinstance(leaf, float) or is_array(leaf)]
    bad = [leaf for leaf in leaves if np.isnan(np.asarray(leaf, np.float64)).any()]
    return "a result with NaN" if bad else None


def identifier(entry):
    function, accepted, _ = entry
    return f"{function.__module__}.{function.__name__}({len(accepted)})"


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param(
            entry, id=identifier(entry), marks=[pytest.mark.slow] * (entry[0].__name__ in SLOW)
        )
        for entry in TABLE
    ],
)
def test_empty_and_largest_arrays_and_negative_sizes(entry):
    function, accepted, _ = entry
    faults = {}
    with signatures_unchecked():
        for argument, value in accepted.items():
            if (function.__name__, argument) in OWN:
                continue
            for name, changed in variants(value):
                problem = fault(function, {**accepted, argument: changed})
                if problem is not None:
                    faults[f"{argument}: {name}"] = problem
    assert not faults
