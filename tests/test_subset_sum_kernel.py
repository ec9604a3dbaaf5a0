"""The compiled kernel against XLA's program, bit for bit; and the fallbacks without a compiler."""

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import test_subset_sum as cases

from slth_jax.subset_sum import batch, kernel, solver

compiled = pytest.mark.skipif(not kernel.ready(), reason="no C++ compiler")
by_xla = functools.partial(jax.jit, static_argnames=("max_exact", "lanes"))(batch.in_tiles)


@compiled
@pytest.mark.parametrize(
    ("n", "max_exact"),
    [
        *((1, 2), (2, 30), (7, 24), (12, 12), (16, 24)),
        *(pytest.param(*cell, marks=pytest.mark.slow) for cell in ((21, 30), (26, 24), (40, 24))),
    ],
)
def test_masks_and_numbers_equal_those_of_xla(n, max_exact):
    draws = [cases.both(n, 100), *(cases.adversarial(n, 203, seed) for seed in range(1, 6))]
    if n > 24:
        draws += [cases.large(kind, n, 64) for kind in cases.KINDS]
    samples, value = map(np.concatenate, zip(*draws, strict=True))
    ours = solver._solve(samples, value, max_exact=max_exact, devices=1)
    reference = by_xla(samples, value, max_exact=max_exact, lanes=64)
    for name, x, y in zip(ours._fields, ours, reference, strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y), err_msg=name)


@compiled
def test_subnormal_and_tied_numbers_equal_those_of_xla():
    rng = np.random.default_rng(0)
    samples = rng.integers(-3, 4, (1000, 12)).astype(np.float32)
    samples[::3] *= np.float32(2.0**-126)
    samples[1::3, 4:] *= np.float32(1e-40)
    value = (samples * rng.integers(0, 2, samples.shape)).sum(1) + samples[:, 0] / 2
    ours = solver._solve(samples, value, max_exact=24, devices=1)
    reference = by_xla(samples, value, max_exact=24, lanes=64)
    for x, y in zip(ours, reference, strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


CODE = """
import hashlib, logging
logging.basicConfig(level=logging.INFO, format="LOG %(name)s %(message)s")
import numpy as np
from slth_jax import subset_sum
x = np.random.default_rng(0).uniform(-1, 1, (200, 6)).astype(np.float32)
solution = subset_sum.solve(x, x[:, 0] + np.float32(0.25))
print(hashlib.sha256(b"".join(np.asarray(part).tobytes() for part in solution)).hexdigest())
"""


def start(cache, **environment):
    variables = {**os.environ, "XDG_CACHE_HOME": str(cache), **environment}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-c", CODE], env=variables, stdout=pipe, stderr=pipe, text=True
    )


def finish(process):
    """Return the output of the process, and its log lines about subset sums."""
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    lines = [x for x in errors.splitlines() if x.startswith("LOG slth_jax.subset_sum")]
    return output, lines


def broken_compiler(folder):
    folder.mkdir()
    path = folder / "c++"
    path.write_text("#!/bin/sh\ntest \"$1\" = --version && exit 0\necho 'error: no' >&2\nexit 1\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.slow
@compiled
def test_without_a_kernel_the_result_is_the_same_after_one_line(tmp_path):
    file = tmp_path / "file"
    file.touch()
    missing = {"PATH": "", "CXX": ""}
    processes = {
        "compiled": start(tmp_path / "good"),
        "switched off": start(tmp_path / "off", SLTH_KERNEL="0"),
        "no C++ compiler": start(tmp_path / "none", **missing),
        "fails: error: no": start(tmp_path / "bad", CXX=broken_compiler(tmp_path / "bin")),
        # A home that cannot be written to, even by root.
        "cannot": start(file / "cache"),
    }
    results = {name: finish(process) for name, process in processes.items()}
    output, lines = results.pop("compiled")
    assert not lines
    for name, (other, lines) in results.items():
        assert other == output, name
        assert len(lines) == 1, lines
        assert name in lines[0] or name == "switched off", lines


@pytest.mark.slow
@compiled
def test_processes_that_start_at_once_compile_once(tmp_path):
    shim = tmp_path / "c++"
    real = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))))
    shim.write_text(
        f'#!/bin/sh\ntest "$1" = --version || echo >> {tmp_path}/calls\nexec {real} "$@"\n'
    )
    shim.chmod(0o755)
    processes = [start(tmp_path / "cache", CXX=str(shim)) for _ in range(8)]
    results = [finish(process) for process in processes]
    assert all(result == results[0] for result in results)
    assert not results[0][1]
    assert Path(tmp_path / "calls").read_text().count("\n") == 1
    assert [x.suffix for x in (tmp_path / "cache" / "slth_jax").iterdir() if x.name != "lock"] == [
        ".so"
    ]
