"""One process of a sweep over several, started by test_multihost.py; not a test itself."""

import hashlib
import json
import os
import signal
import sys

import jax
import jax.numpy as jnp

from slth_jax import distributed, sweep
from slth_jax.storage import CheckpointError

SWEEP = {
    "grid": {"scale": [0.5, 2.0, 3.0], "width": [3, 9]},
    "padded": ["width"],
    "seeds": 7,  # 42 trials do not divide evenly into 8 devices
    "chunk": 20,
    "batch": 2,
}


def make_trial():
    """Return the trial; it captures an array, as experiments capture their targets."""
    offsets = jnp.arange(4.0)[None] / 8

    def trial(key, hparams):
        draw = jax.vmap(lambda j: jax.random.normal(jax.random.fold_in(key, j), (4,)))
        x = draw(jnp.arange(hparams["width_max"])) + offsets
        x = jnp.where(jnp.arange(len(x))[:, None] < hparams["width"], x, 0)
        total, _ = jax.lax.scan(lambda a, row: (a + jnp.exp(row), None), jnp.zeros(4), x)
        return {"error": hparams["scale"] * jnp.linalg.norm(total)}, {"mask": x > 0.5}

    return trial


def digest(results):
    """Return a checksum of all rows and masks."""
    hashed = hashlib.sha256()
    for index in range(len(results)):
        hashed.update(json.dumps(results.row(index)).encode())
        hashed.update(results.arrays(index)["mask"].tobytes())
    return hashed.hexdigest()


def main(out, scenario):
    assert jax.device_count() == 8 and jax.local_device_count() == 4
    trial = make_trial()
    if scenario == "sigterm":

        def progress(done, total):
            if done >= 10:
                os.kill(os.getpid(), signal.SIGTERM)

        sweep.run(trial, out=out, progress=progress, **SWEEP)
        raise AssertionError("the sweep went on after SIGTERM")
    digests = {"memory": digest(sweep.run(trial, **SWEEP))}
    saved = sweep.run(trial, out=out, **SWEEP)
    digests["saved"] = digest(saved)
    digests["resumed"] = digest(sweep.run(trial, out=out, **SWEEP))
    try:
        sweep.run(trial, out=f"{out}/table.csv", **SWEEP)
    except CheckpointError as error:
        digests["refused"] = str(error)
    print("digests " + json.dumps(digests), flush=True)


if __name__ == "__main__":
    with distributed.joined(f"localhost:{sys.argv[2]},{sys.argv[1]}/2"):
        main(*sys.argv[3:])
