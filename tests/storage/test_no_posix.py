"""Importing and computing need nothing of POSIX; a lock on a folder says in a line that it does."""

import subprocess
import sys

CODE = """
import importlib, os, pkgutil, sys
for name in ("fcntl", "resource"):
    sys.modules[name] = None
for name in ("O_DIRECTORY", "O_NONBLOCK", "O_CLOEXEC", "O_NOFOLLOW", "posix_fallocate"):
    delattr(os, name)
import slth_jax
for module in pkgutil.walk_packages(slth_jax.__path__, "slth_jax."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
from slth_jax import cli, storage, sweep
from slth_jax.cli import memory
trial = lambda key, hparams: {"loss": hparams["x"]}
grid = {"seeds": 2, "grid": {"x": [1.0, 2.0]}}
assert len(sweep.run(trial, **grid)) == 4
assert memory.peak_bytes() == 0
storage.write_json("a.json", {"x": 1}, checksum=True)
assert storage.read_json("a.json", checksum=True) == {"x": 1}
try:
    sweep.run(trial, out="run", **grid)
except storage.CheckpointError as error:
    print(error)
"""


def test_nothing_of_posix_is_needed_until_it_is_used(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    command = [sys.executable, "-c", CODE]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "this system has no flock; use a bucket" in done.stdout and done.stdout.count("\n") == 1
