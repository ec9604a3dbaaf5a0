"""Turn a trial function into a batched, sharded program."""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jaxtyping import Int64, Shaped, UInt32

from slth_jax import checks, wheels
from slth_jax.distributed import whole
from slth_jax.storage import named_leaves
from slth_jax.sweep.plan import Plan
from slth_jax.types import Array, ArrayLike, Hparams, Key, Metrics, PyTree

Trial = Callable[[Key, Hparams], Metrics | tuple[Metrics, PyTree]]
# The results of several trials: a dict with 'metrics' and 'arrays', each of which is a dict from
# name to array [trial, ...].
Record = dict[str, dict[str, np.ndarray]]
_ANY = np.zeros(1, np.int64)  # one trial, of which only dtypes matter


def default_mesh() -> Mesh:
    """Return a mesh with one axis, 'trial', over all devices of all processes."""
    wheels.warn_if_unused()
    return jax.make_mesh((jax.device_count(),), ("trial",), axis_types=(AxisType.Auto,))


def _evaluate(
    trial: Trial, static: Mapping[str, Any], seed: UInt32[Array, ""], values: Mapping[str, Array]
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Call the trial; return its metrics and its arrays as two dicts by name."""
    key = jax.random.key(seed, impl="threefry2x32")
    out = trial(key, {**values, **static})
    metrics, arrays = out if isinstance(out, tuple) and len(out) == 2 else (out, {})
    if not isinstance(metrics, Mapping) or not metrics:
        allowed = "a mapping of metrics, or such a mapping and a tree of arrays"
        raise checks.fail("trial's result", allowed, type(metrics).__name__)
    named = {name: jnp.asarray(leaf) for name, leaf in named_leaves(arrays).items()}
    return {str(name): _metric(str(name), value) for name, value in metrics.items()}, named


def _metric(name: str, value: Any) -> Array:
    """Return a metric as an array."""
    try:
        if value is not None:
            return jnp.asarray(value)
    except (TypeError, ValueError):  # text, dictionaries, ragged lists
        pass
    raise checks.fail(f"trial's metric {name!r}", "a number or an array of numbers", repr(value))


def _packed(arrays: dict[str, Array]) -> dict[str, Array]:
    """Pack boolean arrays into bytes, eight entries per byte; leave out empty arrays."""
    return {
        name: jnp.packbits(array.reshape(-1)) if array.dtype == bool else array
        for name, array in arrays.items()
        if array.size
    }


def unpack(arrays: Mapping[str, np.ndarray], spec: Mapping[str, Sequence]) -> dict[str, np.ndarray]:
    """Return one trial's arrays in their original form; `spec` maps each name to (shape, dtype)."""
    out = {}
    for name, (shape, dtype) in spec.items():
        size = int(np.prod(shape, dtype=np.int64))
        stored = arrays[name] if size else np.zeros(0, dtype)
        if dtype == "bool" and size:
            stored = np.unpackbits(stored, count=size).astype(bool)
        out[name] = stored.reshape(shape)
    return out


def empty_record(spec: Mapping[str, Any], count: int) -> Record:
    """Return uninitialised arrays for the results of `count` trials of a program."""
    arrays = {}
    for name, (shape, dtype) in spec["arrays"].items():
        size = int(np.prod(shape, dtype=np.int64))
        if size:
            inner, kind = ([-(-size // 8)], "uint8") if dtype == "bool" else (shape, dtype)
            arrays[name] = np.empty((count, *inner), jnp.dtype(kind))
    metrics = {
        name: np.empty((count, *shape), jnp.dtype(dtype))
        for name, (shape, dtype) in spec["metrics"].items()
    }
    return {"metrics": metrics, "arrays": arrays}


def _consts(jaxpr: Any) -> list[ArrayLike]:
    """Return the constant arrays in a closed jaxpr and in all jaxprs nested in it."""
    consts = list(getattr(jaxpr, "consts", ()))
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        for value in equation.params.values():
            for inner in value if isinstance(value, (list, tuple)) else (value,):
                if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                    consts += _consts(inner)
    return consts


def fingerprint(jaxpr: Any) -> str:
    """Return one SHA-256 of a traced program and of the constant arrays in it.

    The fingerprint changes if the trial's computation changes. The fingerprint does not depend on
    comments in the trial's code, on its file name or on the number of devices.
    """
    digest = hashlib.sha256(re.sub(r"0x[0-9a-f]+", "", str(jaxpr)).encode())
    for const in _consts(jaxpr):
        typed = jax.dtypes.issubdtype(getattr(const, "dtype", None), jax.dtypes.prng_key)
        value = np.asarray(jax.random.key_data(const) if typed else const)
        digest.update(f"{value.dtype}{value.shape}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


class Program:
    """The compiled program of one group of trials.

    Attributes:
      metrics: a dict from the name of each metric to (shape, dtype) in one trial.
      arrays: a dict from the name of each array to (shape, dtype) in one trial, before packing.
      fingerprint: the result of `fingerprint` for this program.
    """

    def __init__(self, trial: Trial, plan: Plan, group: int, mesh: Mesh):
        """Trace the trial without compiling it."""
        self._plan, self._axis = plan, mesh.axis_names[0]
        self._sharding = NamedSharding(mesh, jax.P(self._axis))
        self.lanes = plan.batch * mesh.shape[self._axis]
        self._mesh = mesh
        self._compiled: Callable | None = None
        sizes = {f"{name}_max": size for name, size in plan.groups[group].padded.items()}
        evaluate = partial(_evaluate, trial, {**sizes, **plan.groups[group].static})
        scalars = [jax.ShapeDtypeStruct((), array.dtype) for array in self._inputs(_ANY)]
        self._jaxpr, self._shapes = jax.make_jaxpr(
            lambda seed, *values: evaluate(seed, dict(zip(plan.values, values, strict=True))),
            return_shape=True,
        )(*scalars)
        metrics, arrays = self._shapes
        self.fingerprint = fingerprint(self._jaxpr)
        self.metrics = {name: (spec.shape, str(spec.dtype)) for name, spec in metrics.items()}
        self.arrays = {name: (spec.shape, str(spec.dtype)) for name, spec in arrays.items()}

    def _single(self, captured: list[Array], *inputs: Array) -> tuple[dict, dict]:
        """Compute one trial; return its metrics and its packed arrays."""
        flat = jax.core.eval_jaxpr(self._jaxpr.jaxpr, captured, *inputs)
        metrics, arrays = jax.tree.unflatten(jax.tree.structure(self._shapes), flat)
        return metrics, _packed(arrays)

    def _inputs(self, trials: Int64[np.ndarray, " trial"]) -> list[Shaped[np.ndarray, " trial"]]:
        """Return the program's inputs: the seeds of `trials`, then one array per traced name."""
        point, seed = np.divmod(trials, len(self._plan.seeds))
        return [self._plan.seeds[seed], *(column[point] for column in self._plan.values.values())]

    def trace(self) -> Any:
        """Trace the program for the mesh; return an object that can be lowered and compiled.

        Each device runs `vmap(trial)` over `plan.batch` trials. `shard_map` gives the same program
        for every number of devices, which XLA's own partitioning might not do. Constant arrays in
        the trial become arguments, because the compiler may fold constants with another rounding.
        """
        everywhere, split = jax.P(), jax.P(self._axis)
        whole = NamedSharding(self._mesh, everywhere)
        captured = [
            jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole)
            for x in map(jnp.asarray, self._jaxpr.consts)
        ]
        shapes = [
            jax.ShapeDtypeStruct((self.lanes,), array.dtype, sharding=self._sharding)
            for array in self._inputs(_ANY)
        ]
        # `check_vma` is off: trials are independent, and a trial's loop may start from a constant.
        batched = jax.shard_map(
            jax.vmap(self._single, in_axes=(None, *[0] * len(shapes))),
            mesh=self._mesh,
            in_specs=(everywhere, *[split] * len(shapes)),
            out_specs=split,
            check_vma=False,
        )
        return jax.jit(batched).trace(captured, *shapes)

    def compile(self) -> None:
        """Compile the program, unless it is already compiled."""
        if self._compiled is not None:
            return
        # `jit` places the arrays, because it also places typed keys and works across processes.
        captured = self._jaxpr.consts
        place = jax.jit(lambda: captured, out_shardings=NamedSharding(self._mesh, jax.P()))
        self._captured = place()
        self._compiled = self.trace().lower().compile()

    def spec(self) -> dict[str, Any]:
        """Return a JSON-ready dict with the fingerprint, and the results' shapes and dtypes."""
        return {
            "fingerprint": self.fingerprint,
            "metrics": {
                name: [list(shape), dtype] for name, (shape, dtype) in self.metrics.items()
            },
            "arrays": {name: [list(shape), dtype] for name, (shape, dtype) in self.arrays.items()},
        }

    def steps(self, trials: Int64[np.ndarray, " trial"]) -> int:
        """Return how many calls of the program are needed for `trials`."""
        return -(-len(trials) // self.lanes)

    def part(self, trials: Int64[np.ndarray, " trial"], index: int) -> Int64[np.ndarray, " part"]:
        """Return the part of `trials` that call number `index` computes."""
        return trials[index * self.lanes : (index + 1) * self.lanes]

    def start(self, part: Int64[np.ndarray, " part"]) -> tuple[Any, int]:
        """Start one call of the program for the trials `part`; `collect` returns the results."""
        self.compile()
        assert self._compiled is not None
        # A short call is filled up with copies of the last trial, so that all calls have equal
        # shapes.
        full = np.pad(part, (0, self.lanes - len(part)), mode="edge")
        inputs = [
            jax.make_array_from_callback(array.shape, self._sharding, array.__getitem__)
            for array in self._inputs(full)
        ]
        return self._compiled(self._captured, *inputs), len(part)


def collect(started: tuple[Any, int]) -> Record:
    """Wait for a call that `Program.start` started; return the results on every process."""
    outputs, count = started
    metrics, arrays = jax.tree.map(lambda array: whole(array)[:count], outputs)
    return {"metrics": metrics, "arrays": arrays}


def join(records: list[Record]) -> Record:
    """Concatenate the results of several calls in order."""
    return jax.tree.map(lambda *parts: np.concatenate(parts), *records)
