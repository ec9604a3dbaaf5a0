"""The trials that the tests of sweeps run; not a test itself."""

import chex
import jax
import jax.numpy as jnp
from jax.sharding import AxisType


def trial(key, hparams):
    """A little of everything: products, transcendental functions, a sort, a loop, padding."""
    width, padded = hparams["width"], hparams["width_max"]
    units = jax.vmap(lambda j: jax.random.normal(jax.random.fold_in(key, j), (3,)))
    x = jnp.where(jnp.arange(padded)[:, None] < width, units(jnp.arange(padded)), 0)
    # Summed in order: padding with zeros then changes nothing, to the bit.
    total, _ = jax.lax.scan(
        lambda a, row: (a + row[:, None] * row[None], None), jnp.zeros((3, 3)), x
    )
    steps, _ = jax.lax.while_loop(
        lambda c: c[1] > 1.0, lambda c: (c[0] + 1, c[1] * 0.7), (0, jnp.abs(total).sum())
    )
    error = hparams["scale"] * jnp.exp(-jnp.linalg.norm(jax.nn.softmax(total) @ total))
    metrics = {"error": error, "steps": steps, "sorted": jnp.sort(x[0])}
    return metrics, {"layer": {"mask": x > 0.5}, "sum": total}


GRID = {"scale": [0.5, 2.0], "width": [3, 8, 9]}
KW = {
    "grid": GRID,
    "seeds": 7,
    "padded": ["width"],
    "chunk": 6,
    "batch": 2,
}  # 42 trials, 2 programs


def cheap(key, hparams):
    """A trial that compiles in no time."""
    return {"error": jax.random.uniform(key) * hparams["scale"]}, jax.random.bits(
        key, (5,)
    ) % 2 == 0


CHEAP = {"grid": {"scale": [0.5, 2.0, 3.0]}, "seeds": 5, "chunk": 4, "batch": 2}


def mesh_of(count):
    return jax.make_mesh(
        (count,), ("trial",), axis_types=(AxisType.Auto,), devices=jax.devices()[:count]
    )


def same(left, right):
    assert left.rows == right.rows
    for index in range(len(left)):
        chex.assert_trees_all_equal(left.arrays(index), right.arrays(index))
