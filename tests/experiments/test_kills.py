"""Killed and resumed runs end like undisturbed ones (in full: `experiments.benchmarks.kills`)."""

import pytest

from experiments.benchmarks import kills
from experiments.benchmarks.killed_work import WORK


@pytest.mark.slow
@pytest.mark.parametrize("name", WORK)
def test_killed_and_resumed_runs_lose_and_change_nothing(name, tmp_path):
    count = 1 if name == "figure 4" else 2
    report = kills.run(name, tmp_path, kills=count, seed=1)
    assert report["kills"] == count and report["runs"] >= 1


def test_other_results_are_noticed(tmp_path, monkeypatch):
    seen = iter("aab")
    monkeypatch.setattr(kills, "_finish", lambda *_, **__: 0.0)
    monkeypatch.setattr(kills, "_kill", lambda *_, **__: (False, 0.0))
    monkeypatch.setattr(kills, "_start", lambda *_: None)
    other = {"x": WORK["sweep"].__class__(lambda *_: None, lambda out: next(seen), "*")}
    monkeypatch.setattr(kills, "WORK", other)
    with pytest.raises(AssertionError, match="killed x differs from the undisturbed run"):
        kills.run("x", tmp_path, kills=1)


def test_counts_of_a_run_and_seed_are_replaced(tmp_path):
    file = tmp_path / "kills.json"
    for count in (1, 2):
        kills.save([{"work": "fit", "seed": 0, "kills": count}], file)
    kills.save([{"work": "fit", "seed": 1, "kills": 3}], file)
    from slth_jax import storage

    reports = storage.read_json(file)["reports"]
    assert [(r["seed"], r["kills"]) for r in reports] == [(0, 2), (1, 3)]
