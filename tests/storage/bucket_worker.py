"""One process of two that save sharded arrays in a bucket; not a test itself."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from slth_jax.distributed import joined
from slth_jax.storage import RunFolder


def main(url):
    mesh = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Auto,))

    def tree(offset):
        def draw():
            return jnp.arange(24.0).reshape(8, 3) + offset, jnp.arange(3) + offset

        split = NamedSharding(mesh, PartitionSpec("x"))
        whole = NamedSharding(mesh, PartitionSpec())
        sharded, replicated = jax.jit(draw, out_shardings=(split, whole))()
        return {"sharded": sharded, "replicated": replicated, "host": np.arange(5) + offset}

    run = RunFolder(url, {"x": 1})
    with run.claim():
        run.save("a", tree(0), {"step": 1})()
        run.save("b", tree(1), {"step": 2})()
        loaded, notes = run.load("b", tree(0))
        same = jax.tree.map(
            lambda a, b: (
                all(
                    bool((s.data == t.data).all())
                    for s, t in zip(a.addressable_shards, b.addressable_shards, strict=True)
                )
                if isinstance(a, jax.Array)
                else bool((a == b).all())
            ),
            loaded,
            tree(1),
        )
        assert all(jax.tree.leaves(same)) and notes["step"] == 2, same
        assert loaded["sharded"].sharding == tree(1)["sharded"].sharding
        run.drop("a")
    print("done", flush=True)


if __name__ == "__main__":
    with joined(f"localhost:{sys.argv[2]},{sys.argv[1]}/2"):
        main(*sys.argv[3:])
