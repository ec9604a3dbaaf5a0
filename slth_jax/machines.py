"""Compile programs for machines that are not present, to predict memory and running time.

The compilers for TPUs (`pip install "jax[tpu]"`) and NVIDIA GPUs (`"jax[cuda12]"`) run on any
machine. For example, `compile_for("v5e:4x4", trace)` compiles a program for 16 TPU v5e chips. The
returned `Report` contains the memory per chip, the operations, the collectives and a lower bound on
the running time.
"""

import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from slth_jax import checks

_COLLECTIVE = r"\b(all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
_SCALAR = r"= \w+\[\](?:\{[^}]*\})? [a-z\-]+\("
_CALLBACK = r'custom_call_target="xla_(?:ffi_)?python|\binfeed\(|\boutfeed\('
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
_BYTES |= {"s16": 2, "u16": 2, "s64": 8, "u64": 8, "f64": 8}


class Chip(NamedTuple):
    """A kind of chip, with numbers from the manufacturer's data sheet.

    Attributes:
      platform: 'tpu' or 'cuda'.
      kind: the name of four such chips in Google's API, such as 'v5litepod-4'; empty for GPUs.
      memory: the number of bytes per chip.
      flops: dense bfloat16 operations per second and chip.
      bandwidth: bytes per second between a chip and its memory.
    """

    platform: str
    kind: str
    memory: float
    flops: float
    bandwidth: float


CHIPS = {
    "v5e": Chip("tpu", "v5litepod-4", 16 * 2**30, 197e12, 819e9),
    "v5p": Chip("tpu", "v5p-8", 95 * 2**30, 459e12, 2765e9),
    "v6e": Chip("tpu", "v6e-4", 32 * 2**30, 918e12, 1640e9),
    "h100": Chip("cuda", "", 79 * 2**30, 989e12, 3352e9),
}

# The properties of a GPU, which XLA would otherwise read from the device.
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84929347584 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 } registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 7 }
runtime_version { major: 12 minor: 8 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


class Report(NamedTuple):
    """A program compiled for a machine; memory, operations and bytes are per chip.

    Attributes:
      on: the machine, such as 'v5e:2x2' (see `compile_for`).
      chips: the number of chips.
      arguments, temporary, results: the bytes per chip of arguments, temporary arrays and results.
        A result that reuses an argument's memory counts only as an argument.
      capacity: the number of bytes of a chip's memory.
      flops: floating-point operations of matrix products per call, see `product_flops`.
      collectives: a dict from each kind of collective operation to the number of such operations in
        the program. Collectives over single numbers, by which devices agree to continue a loop,
        have the kind 'scalar'.
      callbacks: the number of callbacks to the host in the program.
      seconds: a lower bound on the time per call. The bound is the time of all matrix products at
        the chip's peak rate, or the time of one pass over arguments and results at the chip's
        bandwidth, whichever is longer. Elementwise operations are not counted.
      compile_seconds: the time that compiling took on this machine.
      text: the compiled program.
    """

    on: str
    chips: int
    arguments: int
    temporary: int
    results: int
    capacity: float
    flops: float
    collectives: dict[str, int]
    callbacks: int
    seconds: float
    compile_seconds: float
    text: str

    @property
    def memory(self) -> int:
        """The number of bytes per chip of arguments, temporary arrays and results together."""
        return self.arguments + self.temporary + self.results

    @property
    def fits(self) -> bool:
        """Whether the program fits into a chip's memory."""
        return self.memory <= self.capacity

    def lines(self, help_if_too_large: str = "") -> list[str]:
        """Return the report as lines of text; `help_if_too_large` is advice on saving memory."""
        gib = 2**30
        lines = [
            f"  {self.memory / gib:.2f} GiB of {self.capacity / gib:.0f} GiB per chip "
            f"({self.arguments / gib:.2f} arguments, {self.temporary / gib:.2f} temporary), "
            f"{self.chips} chips of {self.on.partition(':')[0]}",
            f"  {self.flops:.3g} floating-point operations of products and "
            f"{self.arguments + self.results:.3g} bytes of arguments and results per chip and call",
            "  collectives: "
            + (", ".join(f"{n} {kind}" for kind, n in self.collectives.items()) or "none"),
            f"  at least {self.seconds:.3g} s per call (roofline); compiled in "
            f"{self.compile_seconds:.1f} s",
        ]
        if not self.fits:
            excess = (self.memory - self.capacity) / gib
            lines.append(f"  does not fit: {excess:.2f} GiB too much per chip; {help_if_too_large}")
        return lines


def devices_of(on: str) -> tuple[Chip, list[Any]]:
    """Return the chip and the devices of a topology such as 'v5e:4x4' or 'h100:8'.

    Raises:
      ValueError: the chip is not in `CHIPS`, its compiler is not installed, or the compiler does
        not support the topology.
    """
    name, _, shape = on.partition(":")
    chip = CHIPS[checks.choice("on", name, tuple(CHIPS))]
    if not re.fullmatch(r"\d+(x\d+)*", shape):
        raise checks.fail("on", "a chip and its topology, as v5e:4x4 or h100:8", on)
    try:
        if chip.platform == "tpu":
            # These variables only prevent libtpu from asking a metadata server.
            for variable, value in (
                ("TPU_SKIP_MDS_QUERY", "1"), ("TPU_ACCELERATOR_TYPE", chip.kind),
                ("TPU_WORKER_HOSTNAMES", "localhost"), ("TPU_WORKER_ID", "0"),
            ):  # fmt: skip
                os.environ.setdefault(variable, value)
            # A host has four chips unless the bounds are set otherwise.
            single = {"chips_per_host_bounds": [1, 1, 1]} if set(shape) <= set("1x") else {}
            described = topologies.get_topology_desc(on, platform="tpu", **single)
            return chip, list(described.devices)
        # A GPU topology is processes x hosts x devices.
        described = topologies.get_topology_desc(
            platform="cuda", target_config=_H100, topology=f"1x1x{shape}"
        )
        return chip, list(described.devices)
    except Exception as error:
        reason = str(error).splitlines()[0]
        extra = "tpu" if chip.platform == "tpu" else "cuda12"
        allowed = f"a machine whose compiler is installed (slth-jax[{extra}])"
        raise checks.fail("on", allowed, f"{on}: {reason}") from error


def mesh_of(
    devices: Sequence[Any], sizes: Sequence[int] | None = None, names: Sequence[str] = ("trial",)
) -> Mesh:
    """Return a mesh of `sizes` over a topology's devices; by default it has one axis."""
    shape = tuple(sizes) if sizes else (len(devices),)
    kinds = (AxisType.Auto,) * len(shape)
    return Mesh(np.array(devices, dtype=object).reshape(shape), tuple(names), axis_types=kinds)


def compile_for(on: str, trace: Callable[[Sequence[Any]], Any]) -> Report:
    """Compile a program for a machine that is not present.

    Args:
      on: a kind of chip and a topology, such as 'v5e:2x2', 'v6e:16x16' or 'h100:8'.
      trace: a function that receives the topology's devices and returns
        ``jax.jit(f).trace(*shapes)``, where the shapes have shardings over these devices.

    Returns:
      A `Report` of memory, operations, collectives and time.
    """
    chip, devices = devices_of(on)
    with _known_platform(chip.platform):
        traced = trace(devices)
        start = time.perf_counter()
        options = {"xla_gpu_autotune_level": 0} if chip.platform == "cuda" else None
        compiled = traced.lower().compile(options)
        seconds = time.perf_counter() - start
    memory, text = compiled.memory_analysis(), compiled.as_text()
    kinds = [
        "scalar" if re.search(_SCALAR, line) else match[1]
        for line in text.splitlines()
        if (match := re.search(_COLLECTIVE, line))
    ]
    arguments = memory.argument_size_in_bytes
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    flops = product_flops(traced.jaxpr) / len(devices)
    return Report(
        on=on,
        chips=len(devices),
        arguments=arguments,
        temporary=memory.temp_size_in_bytes,
        results=results,
        capacity=chip.memory,
        flops=flops,
        collectives={kind: kinds.count(kind) for kind in sorted(set(kinds))},
        callbacks=len(re.findall(_CALLBACK, text)),
        seconds=max(flops / chip.flops, (arguments + memory.output_size_in_bytes) / chip.bandwidth),
        compile_seconds=seconds,
        text=text,
    )


@contextmanager
def _known_platform(platform: str) -> Iterator[None]:
    """Let JAX lower a program for CUDA on a machine without a GPU.

    JAX has no public function for this (jax-ml/jax#23971).
    """
    from jax._src import xla_bridge

    known = xla_bridge.canonicalize_platform

    def with_cuda(platform: str) -> str:
        return "cuda" if platform in ("gpu", "cuda") else known(platform)

    replaced = with_cuda if platform == "cuda" else known
    with mock.patch.object(xla_bridge, "canonicalize_platform", replaced):
        yield


def product_flops(jaxpr: Any) -> float:
    """Return the number of floating-point operations of all matrix products in a jaxpr.

    The body of a scan counts once per iteration; the body of a `while` loop counts only once.
    Operations inside `shard_map` are per device, so they are multiplied by the number of devices in
    the mesh.
    """
    total = 0.0
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        times, parameters = 1.0, equation.params
        if equation.primitive.name == "dot_general":
            contracted = parameters["dimension_numbers"][0][0]
            left = equation.invars[0].aval
            depth = 1
            for axis in contracted:
                depth *= left.shape[axis]
            total += 2.0 * depth * equation.outvars[0].aval.size
        if equation.primitive.name == "scan":
            times = parameters["length"]
        if equation.primitive.name == "shard_map":
            times = parameters["mesh"].size
        for value in parameters.values():
            for inner in value if isinstance(value, (list, tuple)) else (value,):
                if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                    total += times * product_flops(inner)
    return total


def loop_traffic(text: str) -> int:
    """Return the bytes that the loops of a TPU program write to main memory in one iteration each.

    The result of an operation is counted unless its layout is in the vector memory, `S(1)`.
    """
    body = ""
    written: dict[str, int] = {}
    fused = set(re.findall(r"(?:calls|to_apply)=%([\w.\-]+)", text))
    for line in text.splitlines():
        if started := re.match(r"(ENTRY )?%([\w.\-]+) \(.*\{$", line):
            body = "" if started[1] else started[2]
        operation = re.match(r"\s+(?:ROOT )?%[\w.\-]+ = (.*?) ([a-z\-]+)\(", line)
        if body and body not in fused and operation and operation[2] not in _NO_TRAFFIC:
            written[body] = written.get(body, 0) + _bytes_outside(operation[1])
    return sum(written.values())


_NO_TRAFFIC = ("parameter", "get-tuple-element", "tuple", "bitcast", "while", "constant")


def _bytes_outside(shape: str) -> int:
    """Return the bytes of all arrays in an HLO shape except arrays in the vector memory."""
    total = 0
    for kind, sizes, layout in re.findall(r"(\w+)\[([\d,]*)\](\{[^}]*\})?", shape):
        if kind in _BYTES and "S(1)" not in layout:
            count = 1
            for size in filter(None, sizes.split(",")):
                count *= int(size)
            total += count * _BYTES[kind]
    return total
