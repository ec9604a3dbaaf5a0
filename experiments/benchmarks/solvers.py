"""Wrap other programs that solve subset sums: commercial, open-source and two simple ones.

A solver takes `samples[b, n]` and `value[b]` (float32) and returns the error of each of the b
subset sums. If the wrapped program finds a subset, the error of that subset is computed in float64.
The dictionary `ALL` contains, for each solver, a function without arguments that returns the
solver. This function raises `Missing` if the solver cannot be used on this machine; the message is
the reason.
"""

import ctypes
import importlib.util
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

Solver = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Missing(Exception):
    """The exception that is raised if a solver cannot be used; its message is the reason."""


def error_of(samples: np.ndarray, value: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return `|value - sum of the kept samples|` in float64."""
    return np.abs(value - np.sum(samples.astype(np.float64) * mask, axis=-1))


def _one_by_one(find: Callable[[np.ndarray, float], np.ndarray]) -> Solver:
    def solve(samples, value):
        masks = [find(s.astype(np.float64), float(v)) for s, v in zip(samples, value, strict=True)]
        return error_of(samples, value, np.array(masks))

    return solve


def _needs(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise Missing(f"{package} is not installed")


def gurobi() -> Solver:
    """Return a solver by Gurobi (one thread): minimise |value - sum x_i samples_i|, x_i binary."""
    _needs("gurobipy")
    import gurobipy

    try:
        environment = gurobipy.Env(params={"OutputFlag": 0})
    except gurobipy.GurobiError as error:
        raise Missing(f"Gurobi does not start: {error}") from error
    # The tightest tolerances that Gurobi allows; its defaults stop at a relative gap of 1e-4.
    tight = {"Threads": 1, "MIPGap": 0, "MIPGapAbs": 0, "FeasibilityTol": 1e-9, "IntFeasTol": 1e-9}

    def find(samples, value):
        with gurobipy.Model(env=environment) as model:
            for name, setting in tight.items():
                model.setParam(name, setting)
            x = model.addMVar(samples.size, vtype="B")
            e = model.addVar(obj=1.0)
            model.addConstr(samples @ x + e >= value)
            model.addConstr(samples @ x - e <= value)
            model.optimize()
            return x.X > 0.5

    return _one_by_one(find)


def highs() -> Solver:
    """Return a solver by HiGHS, called through SciPy, with the integer program of `gurobi`."""
    _needs("scipy")
    from scipy.optimize import Bounds, LinearConstraint, milp

    def find(samples, value):
        n = samples.size
        rows = np.stack([np.append(samples, 1.0), np.append(samples, -1.0)])
        result = milp(
            np.append(np.zeros(n), 1.0),
            integrality=np.append(np.ones(n), 0),
            bounds=Bounds(0, np.append(np.ones(n), np.inf)),
            constraints=LinearConstraint(rows, [value, -np.inf], [np.inf, value]),
            options={"mip_rel_gap": 0.0},
        )
        return result.x[:n] > 0.5

    return _one_by_one(find)


def cp_sat() -> Solver:
    """Return a solver by OR-tools' CP-SAT (one thread); it rounds numbers to multiples of 2^-40."""
    _needs("ortools")
    from ortools.sat.python import cp_model

    def find(samples, value):
        whole = np.round(samples * 2.0**40).astype(int).tolist()
        model = cp_model.CpModel()
        x = [model.new_bool_var("") for _ in whole]
        e = model.new_int_var(0, 2**50, "")
        difference = cp_model.LinearExpr.weighted_sum(x, whole) - round(value * 2.0**40)
        model.add(difference <= e)
        model.add(-difference <= e)
        model.minimize(e)
        solver = cp_model.CpSolver()
        solver.parameters.num_workers = 1
        solver.solve(model)
        return [solver.boolean_value(kept) for kept in x]

    return _one_by_one(find)


def numpy_halves() -> Solver:
    """Return a meet-in-the-middle solver in float64 that uses NumPy's sort and searchsorted."""

    def subset_sums(samples):
        sums = np.zeros(1)
        for sample in samples:
            sums = np.concatenate([sums, sums + sample])
        return sums

    def solve(samples, value):
        errors = []
        for s, v in zip(samples.astype(np.float64), value.astype(np.float64), strict=True):
            a, missing = np.sort(subset_sums(s[0::2])), v - subset_sums(s[1::2])
            after = np.searchsorted(a, missing)
            above = np.abs(a[np.minimum(after, a.size - 1)] - missing)
            below = np.abs(a[np.maximum(after - 1, 0)] - missing)
            errors.append(min(above.min(), below.min()))
        return np.array(errors)

    return solve


def two_pointer() -> Solver:
    """Return the solver in `two_pointer.c`, which uses one core and float32 and finds no mask."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        raise Missing("no C compiler")
    source = Path(__file__).with_name("two_pointer.c")
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "two_pointer.so"
        options = ["-O3", "-march=native", "-shared", "-fPIC", "-lm"]
        command = [compiler, *options, "-o", str(built), str(source)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise Missing(f"{compiler} fails: {done.stderr.strip().splitlines()[-1]}")
        run = ctypes.CDLL(str(built)).two_pointer
    run.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_long, ctypes.c_int]

    def solve(samples, value):
        samples, value = np.ascontiguousarray(samples), np.ascontiguousarray(value)
        errors = np.empty(value.shape, np.float32)
        if run(samples.ctypes.data, value.ctypes.data, errors.ctypes.data, *samples.shape):
            raise MemoryError("two_pointer.c")
        return errors.astype(np.float64)

    return solve


ALL: dict[str, Callable[[], Solver]] = {
    "Gurobi": gurobi,
    "HiGHS": highs,
    "CP-SAT": cp_sat,
    "NumPy halves": numpy_halves,
    "C two-pointer": two_pointer,
}
