"""Compile the C++ solver for CPUs (`native/`) at first use, and load it from the user's cache.

The compiled library is stored in `$XDG_CACHE_HOME/slth_jax` (`~/.cache/slth_jax`) under a name that
depends on the source code, the version of jaxlib, the compiler and the processor. If there is no
compiler, or if compiling or loading fails, XLA compiles the same computation. XLA's program is
slower than the C++ solver, but its results are bit-identical.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jax
import jaxlib
from jax.interpreters import mlir
from jaxlib.mlir import ir

from slth_jax import storage

_log = logging.getLogger("slth_jax.subset_sum")

SOURCES = sorted(Path(__file__).with_name("native").iterdir())
TARGET = "slth_jax_closest_subsets"
WALKS = "slth_jax_shortest_walks"
# Contraction is off, because it would fuse products into sums and so change bits.
OPTIONS = ("-std=c++17", "-O3", "-ffp-contract=off", "-fPIC", "-shared", "-w")


@functools.cache
def ready() -> bool:
    """Compile and load the C++ solver if necessary; return whether it can be called.

    If the solver cannot be used, the reason is logged once. `SLTH_KERNEL=0` disables the solver.
    """
    if os.environ.get("SLTH_KERNEL") == "0":
        _log.info("SLTH_KERNEL=0: subset sums are compiled by XLA")
        return False
    try:
        library = ctypes.CDLL(str(_built()))
        for target, function in (
            (TARGET, library.ClosestSubsets),
            (WALKS, library.ShortestWalks),
        ):
            jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(function), platform="cpu")
        jax.ffi.register_ffi_target_as_batch_partitionable(TARGET)
    except (OSError, AttributeError, storage.CheckpointError, subprocess.SubprocessError) as error:
        _log.warning("no compiled subset-sum solver, XLA's is slower: %s", _line(error))
        return False
    return True


def lower(
    context: mlir.LoweringRuleContext, samples: ir.Value, value: ir.Value, max_exact: int
) -> Sequence[ir.Value | Sequence[ir.Value]]:
    """Emit the kernel call for float32 `samples[b, n]` and `value[b, 1]`; `ready` must be true."""
    b, n = (int(x) for x in ir.RankedTensorType(samples.type).shape)
    # A device solves its part of the batch, with all samples of each instance. The first attribute
    # is for Shardy, which decides how arrays are placed, the second for XLA, which splits the call.
    rule = "([i, j], [i, k])->([i, j], [i, k], [i, k], [i, k])"
    rule += f" {{i={b}, j={n}, k=1}} need_replication={{j, k}}, custom"
    attributes = {
        "sdy.sharding_rule": ir.Attribute.parse(f"#sdy.op_sharding_rule<{rule}>"),
        "mhlo.frontend_attributes": ir.DictAttr.get({"num_batch_dims": ir.StringAttr.get("1")}),
    }
    call = jax.ffi.ffi_lowering(TARGET, extra_attributes=attributes)
    return call(context, samples, value, max_exact=max_exact)


def _line(error: Exception) -> str:
    """Return an error as one line: of a compiler's output, the first line that contains 'error'."""
    if not isinstance(error, subprocess.CalledProcessError):
        return " ".join(str(error).split())
    lines = error.stderr.strip().splitlines() or ["no message"]
    return f"{error.cmd[0]} fails: " + next((x for x in lines if "error" in x), lines[-1])


def _built() -> Path:
    """Return the path of the shared library; compile it if the cache does not contain it."""
    names = (os.environ.get("CXX", ""), "c++", "g++", "clang++")
    compiler = next((path for path in map(shutil.which, names) if path), None)
    if compiler is None:
        raise OSError("no C++ compiler on the path")
    options = (*OPTIONS, *_processor_options())
    version = subprocess.run(
        [compiler, "--version"], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    key = "\n".join([*options, jaxlib.__version__, version, _processor()]).encode()
    source = b"".join(path.read_bytes() for path in SOURCES)
    name = hashlib.sha256(source + key).hexdigest()[:24]
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = home / "slth_jax"
    library = folder / f"subset_sum-{name}.so"
    if library.exists():
        return library
    # One process compiles. Other processes wait for this process and then use its library.
    with storage.lock(folder, wait=True):
        if not library.exists():
            _compile(compiler, options, library)
    return library


def _compile(compiler: str, options: Sequence[str], library: Path) -> None:
    """Compile to a temporary file and rename it, so that no process loads an incomplete library."""
    with tempfile.TemporaryDirectory(dir=library.parent, prefix="compiling-") as folder:
        built = Path(folder) / library.name
        sources = [str(path) for path in SOURCES if path.suffix == ".cc"]
        include = f"-I{jax.ffi.include_dir()}"
        command = [compiler, *options, include, "-o", str(built), *sources]
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
        os.replace(built, library)


def _processor_options() -> tuple[str, ...]:
    """Return the compiler options for this processor, which differ between x86 and ARM."""
    return ("-march=native",) if platform.machine() in ("x86_64", "AMD64") else ("-mcpu=native",)


def _processor() -> str:
    """Return the processor's model and instruction sets; different machines may share the cache."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()} {platform.node()}"
    kinds = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(kinds)}))
