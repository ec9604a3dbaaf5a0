"""A checksum of the random numbers that this process draws."""

import jax
import numpy as np

from slth_jax import storage


def draws() -> str:
    """Return a checksum of random numbers from the generator that trials use.

    The random numbers depend on the release of JAX and on settings such as
    `jax_threefry_partitionable`.
    """
    key = jax.random.key(0, impl="threefry2x32")
    bits = np.asarray(jax.random.bits(key, (7, 3)))
    uniform = np.asarray(jax.random.uniform(jax.random.fold_in(key, 1), (7,), np.float32))
    return storage.array_hash({"bits": bits, "uniform": uniform})[:16]
