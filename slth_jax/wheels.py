"""Choose JAX's wheels for this machine's accelerator; check that installed wheels fit together.

JAX, its compiler (jaxlib) and an accelerator's plugin must belong to the same release. If a plugin
belongs to another release, JAX only warns and runs everything on the CPU. This module imports only
the standard library, so that it runs before JAX is installed.
"""

import functools
import glob
import importlib.metadata
import logging
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

_log = logging.getLogger("slth_jax")
_CUDA = ("cuda13", "cuda12")
_NAMES = ("jax", "jaxlib", "libtpu", *(f"jax-{c}-{p}" for c in _CUDA for p in ("plugin", "pjrt")))
# Maps each CUDA release to the first version of NVIDIA's driver that can run its programs.
_DRIVERS = {"cuda13": 580, "cuda12": 525}


def installed() -> dict[str, str]:
    """Return a dict from the name of each installed wheel of JAX to its version."""
    versions = {}
    for name in _NAMES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def extra(versions: Mapping[str, str], *, tpu: bool, driver: int | None) -> str | None:
    """Return slth-jax's pip extra for a machine: 'tpu', 'cuda12', 'cuda13', or None for a CPU.

    Args:
      versions: the result of `installed`. If the machine has no TPU, an installed CUDA plugin
        determines the result.
      tpu: whether the machine has a TPU.
      driver: the major version of NVIDIA's driver; None if there is no GPU.
    """
    if tpu:
        return "tpu"
    for cuda in _CUDA:
        if f"jax-{cuda}-plugin" in versions:
            return cuda
    if driver is not None:
        return next((cuda for cuda in _CUDA if driver >= _DRIVERS[cuda]), None)
    return "tpu" if "libtpu" in versions else None


def extras(*more: str) -> str:
    """Return the pip extras `more` and the accelerator's extra, such as 'plots,cuda12'."""
    accelerator = extra(installed(), tpu=has_tpu(), driver=nvidia_driver())
    return ",".join([*more, *([accelerator] if accelerator else [])])


def has_tpu() -> bool:
    """Return whether this machine has a TPU."""
    devices = glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*")
    return bool(devices) or any(name in os.environ for name in ("TPU_NAME", "COLAB_TPU_ADDR"))


def nvidia_driver() -> int | None:
    """Return the major version of NVIDIA's driver; None if there is no GPU."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    version = re.match(r"\d+", done.stdout)
    return int(version[0]) if done.returncode == 0 and version else None


def mismatch(versions: Mapping[str, str], libtpu: str | None) -> str | None:
    """Return a line about the first wheels found to be of different releases; None if all match.

    Args:
      versions: see `installed`.
      libtpu: the version that the installed JAX needs, such as '0.0.42' or '0.0.42.*'; None if JAX
        does not state a version.
    """
    if "jax" not in versions or "jaxlib" not in versions:
        return "jax or jaxlib is not installed"
    for name, version in versions.items():
        if name not in ("jax", "libtpu") and version != versions["jaxlib"]:
            return f"{name} {version} does not belong to jaxlib {versions['jaxlib']}"
    if "libtpu" in versions and libtpu is not None:
        stem = libtpu.removesuffix(".*")
        if versions["libtpu"] != stem and not versions["libtpu"].startswith(f"{stem}."):
            return f"libtpu {versions['libtpu']} does not belong to jax {versions['jax']}"
    return None


def needed_libtpu() -> str | None:
    """Return the version of libtpu that the installed JAX needs; None if it states none."""
    try:
        lines = importlib.metadata.requires("jax") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    versions = (re.match(r"libtpu\s*\(?==\s*([\w.*]+)", line) for line in lines)
    return next((version[1] for version in versions if version), None)


def advice() -> str:
    """Return a line for a notebook with the installed versions, or with the next step to take."""
    importlib.invalidate_caches()
    versions = installed()
    problem = mismatch(versions, needed_libtpu())
    if problem is not None:
        return f"{problem}: install 'slth-jax[{extras() or 'plots'}]' in a fresh runtime"
    words = ", ".join(f"{name} {version}" for name, version in versions.items())
    if "jax" in sys.modules:
        return f"{words}. RESTART THE SESSION NOW: an older JAX is loaded, then go on below"
    return f"{words}: they belong together"


def unused(versions: Mapping[str, str], backend: str, libtpu: str | None) -> str | None:
    """Return a warning if JAX runs on the CPU despite an accelerator's plugin, else None."""
    plugins = [name for name in versions if name == "libtpu" or name.endswith("-plugin")]
    if backend != "cpu" or not plugins:
        return None
    name = plugins[0]
    accelerator = "tpu" if name == "libtpu" else name.split("-")[1]
    why = mismatch(versions, libtpu) or "JAX finds no such device"
    return (
        f"{name} {versions[name]} is installed but not used, JAX runs on the CPU: {why} "
        f"(pip install 'slth-jax[{accelerator}]', or JAX_PLATFORMS=cpu if that is intended)"
    )


@functools.cache
def warn_if_unused() -> None:
    """Log a warning, once, if an accelerator's plugin is installed but not used.

    Nothing is logged if JAX_PLATFORMS is set. The call initialises JAX's devices, so the processes
    of a run must join before this call.
    """
    import jax

    config: Any = jax.config
    if not config.jax_platforms:
        line = unused(installed(), jax.default_backend(), needed_libtpu())
        if line is not None:
            _log.warning("%s", line)
