"""One process of a training over several, started by test_multihost_training.py; not a test."""

import hashlib
import json
import os
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

from slth_jax import distributed, edge_popup

STEPS, AT = 8, 5
MESHES = {"runs": (4, 1, 1), "rows": (2, 2, 1), "model": (1, 2, 2)}


def draw(key):
    a, b = jax.random.split(key)
    return {
        "a": jax.random.normal(a, (4, 16)),
        "b": jax.random.normal(b, (16, 2)),
        "bias": jnp.zeros(2),
    }


def loss(params, rows):
    x, y = rows
    out = jax.nn.relu(x @ params["a"]) @ params["b"] + params["bias"][None]
    return jnp.mean((out - y) ** 2)


def batch(step):
    x = np.random.default_rng(step).normal(size=(8, 4)).astype(np.float32)
    return x, np.tanh(x[:, :2])


def fit(mesh, *, out=None, batches=batch):
    """Train four runs, two of them controls, with weights that are drawn anew."""
    schedule = edge_popup.Schedule(steps=STEPS, warmup=1, weight_decay=0.0)
    if isinstance(mesh, str):
        names, devices = ("run", "data", "model"), jax.devices()[:4]
        auto = (AxisType.Auto,) * 3
        mesh = jax.make_mesh(MESHES[mesh], names, axis_types=auto, devices=devices)
    return edge_popup.fit(
        jax.random.key(4, impl="threefry2x32"),
        draw,
        loss,
        batches,
        keep=0.3,
        seeds=2,
        controls=["random"],
        masking=edge_popup.Masking(
            edge_popup.Variant(redraw_every=3, redraw_rate=0.5), learn=lambda name, array: True
        ),
        training=edge_popup.Training(
            steps=STEPS,
            optimizer=schedule.optimizer(0.05),
            validation=[batch(99)],
            evaluate_every=4,
            evaluate_first=True,
            mesh=mesh,
        ),
        out=out,
    )


def outcome(fits):
    """Return the losses, and a checksum of the masks and of the tickets, of all runs."""
    hashed = hashlib.sha256()
    for result in fits:
        for leaf in jax.tree.leaves((result.masks, result.ticket)):
            hashed.update(distributed.whole(leaf).tobytes())
    return {"losses": [result.log for result in fits], "arrays": hashed.hexdigest()}


def terminated(step):
    """Return the batch of a step; at one of them the second process gets SIGTERM."""
    if step == AT and jax.process_index() == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    return batch(step)


def main(out, scenario):
    assert jax.device_count() == 4 and jax.local_device_count() == 2
    if scenario == "sigterm":
        fit(None, out=out, batches=terminated)
        raise AssertionError("the training went on after SIGTERM")
    results = {name: outcome(fit(name)) for name in MESHES}
    results["saved"] = outcome(fit(None, out=out))
    print("results " + json.dumps(results), flush=True)


if __name__ == "__main__":
    with distributed.joined(f"localhost:{sys.argv[2]},{sys.argv[1]}/2"):
        main(*sys.argv[3:])
