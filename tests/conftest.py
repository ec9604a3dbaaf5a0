"""Strict settings for every test, set before JAX is imported; compiled programs are shared."""

import os
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiling is nearly all of the suite's time; most tests prove as much of a program that XLA
# optimised less (`compiled_in_full` is for the others). Set to 0, everything is compiled in full.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "standard")

# One folder of compiled programs for a run of the suite: its workers inherit the variables, and so
# do processes that tests start. JAX does not write entries atomically, and tests kill processes:
# an entry that is not whole fails to decompress; JAX then warns, and compiles the program.
PROGRAMS = None
if jax.config.jax_compilation_cache_dir is None:
    PROGRAMS = tempfile.TemporaryDirectory(prefix="slth-jax-programs-")
    for name, value in (
        ("jax_compilation_cache_dir", PROGRAMS.name),
        ("jax_persistent_cache_min_compile_time_secs", 0.2),
        ("jax_persistent_cache_min_entry_size_bytes", 0),
    ):
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)
    os.environ.setdefault("PYTHONWARNINGS", "ignore:Error reading persistent compilation cache")

# Linux lets a process map 65,530 regions; XLA's programs take several each, and a suite in one
# process would end in a segmentation fault.
MAPS, MOST_MAPS = Path("/proc/self/maps"), 30_000


def pytest_unconfigure():
    if PROGRAMS is not None:
        PROGRAMS.cleanup()


@pytest.fixture(scope="module", autouse=True)
def programs_are_freed():
    """Let go of compiled programs where a process holds many."""
    yield
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()


@pytest.fixture(autouse=True)
def float32_again():
    """Experiments switch float64 on; the next test must find it off."""
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture(scope="module")
def compiled_in_full():
    """Compile as users do: for tests of bits that must be equal in different programs."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
