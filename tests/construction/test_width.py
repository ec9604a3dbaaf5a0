"""The smallest width for an error: that it is one, and how often programs are compiled."""

import jax
import jax.numpy as jnp
import pytest
from refusals import refusals

from slth_jax import attention, construction, initializers
from slth_jax.construction import width

KEY = jax.random.key(4, impl="threefry2x32")
SHAPE = {"num_heads": 1, "d_in": 2, "d_out": 1}


def target():
    drawn = initializers.theory_attention(KEY, n_k=8, n_v=8, **SHAPE)
    return jax.tree.map(lambda w: w * 0.3, drawn)


def mean_error(n, x, seeds):
    """Measure it again, one unpadded source after another."""
    errors = []
    for key in jax.random.split(jax.random.split(KEY)[1], seeds):
        source = initializers.theory_attention(key, n_k=n, n_v=n, **SHAPE)
        masks = construction.prune_attention(source, target())
        ticket = construction.apply_masks(source, masks)
        errors.append(attention.error(ticket, target(), x))
    return float(jnp.mean(jnp.stack(errors)))


@pytest.mark.slow
def test_it_is_good_and_one_less_is_not():
    x = jax.random.normal(KEY, (3, 4, 2))
    before = width._errors._cache_size()
    result = construction.find_width(target(), 0.03, key=KEY, inputs=x, seeds=4)
    assert result.error == result.tried[result.width] <= 0.03 < result.tried[result.width - 1]
    assert width._errors._cache_size() - before == len(
        {n for n in result.tried if n & (n - 1) == 0}
    )
    assert mean_error(result.width, x, 4) == pytest.approx(result.error, abs=1e-6)
    again = construction.find_width(target(), 0.03, key=KEY, inputs=x, seeds=4)
    assert again == result


def test_bad_input_and_what_cannot_be_reached_is_said():
    with refusals(r"^error must be a number in \(0, inf\), got 0"):
        construction.find_width(target(), 0.0, key=KEY)
    with refusals(r"^error must be reached by width largest=4, got .*"):
        construction.find_width(target(), 1e-9, key=KEY, seeds=4, largest=4)
    with pytest.raises(
        ValueError, match=r"^construction must be one of 'proof', 'reach', 'shift', 'fitted'"
    ):
        construction.find_width(target(), 0.1, key=KEY, construction="best")
