"""Sweeps that several files look at."""

import shutil

import pytest
from sweep_trials import CHEAP, KW, cheap, mesh_of, trial

from slth_jax import sweep
from slth_jax.sweep import program as sweep_program


@pytest.fixture(scope="session")
def reference():
    return sweep.run(trial, mesh=mesh_of(1), **KW)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "out"
    return out, sweep.run(cheap, out=out, **CHEAP)


@pytest.fixture
def folder(finished, tmp_path):
    """A copy of a finished sweep's folder."""
    return shutil.copytree(finished[0], tmp_path / "out")


@pytest.fixture
def computed(monkeypatch):
    """The trials that are computed, in order."""
    trials = []
    start = sweep_program.Program.start

    def counting(self, part):
        out = start(self, part)
        trials.extend(part.tolist())
        return out

    monkeypatch.setattr(sweep_program.Program, "start", counting)
    return trials
