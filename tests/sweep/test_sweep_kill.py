"""A sweep that is killed and resumed ends like an undisturbed one (in full: benchmarks/kill.py)."""

from experiments.benchmarks import kill


def test_killed_and_resumed_sweeps_lose_and_change_nothing(tmp_path):
    report = kill.run(tmp_path, kills=3, points=4, seeds=64, seed=1)
    assert report["trials"] == 256 and report["kills"] >= 1 and report["identical"]
