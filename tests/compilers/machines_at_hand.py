"""Which compilers are installed."""

import pytest

from slth_jax import machines


def skip_without(on):
    """Skip if the compiler for the machine `on` is not installed."""
    try:
        machines.devices_of(on)
    except ValueError as error:
        pytest.skip(str(error).splitlines()[0])
