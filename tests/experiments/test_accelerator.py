"""The accelerator benchmark, small and on a CPU: it compares, measures and judges."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import accelerator
from experiments.language.model import Model
from slth_jax import models

MODEL = Model(
    models.make_settings(num_blocks=1, width=16, num_heads=1, vocab_size=32, max_length=8)
)


@pytest.mark.slow
def test_it_leaves_one_file_and_a_table(tmp_path, monkeypatch, capsys):
    tiny = accelerator.Preset(8, 64, 2**16, MODEL, 2, 1)
    monkeypatch.setitem(accelerator.PRESETS, "quick", tiny)
    assert accelerator.main(["--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "accelerator.json").read_text())
    assert report["preset"] == "quick" and {"device", "date", "versions"} <= report.keys()
    assert report["bandwidth"]["n"] == 8 and report["bandwidth"]["of_limit"] > 0
    assert [step["step"] for step in report["steps"]] == ["masked", "dense"]
    assert all(step["tokens_per_second"] > 0 for step in report["steps"])
    checked = [row for row in report["rows"] if "passes" in row]
    assert len(checked) == 5 and all(row["passes"] for row in checked)
    assert "0 of 512 entries differ" in checked[1]["measured"]
    table = (tmp_path / "accelerator.md").read_text()
    assert all(row["what"] in table for row in report["rows"]) and table in capsys.readouterr().out


@pytest.mark.parametrize("compare", [accelerator._equal, accelerator._close])
def test_a_device_that_computes_something_else_fails(compare, tmp_path, monkeypatch, capsys):
    answers = iter([jnp.zeros(4), jnp.array([0.0, 0.0, 0.0, 1e-3])])
    row = compare("outputs", lambda: next(answers))
    assert row["passes"] is False
    assert "1 of 4" in row["measured"] or "0.001" in row["measured"]
    monkeypatch.setattr(accelerator, "parity", lambda preset: [row])
    monkeypatch.setattr(accelerator, "speed", lambda preset: ([], {}))
    assert accelerator.main(["--out", str(tmp_path)]) == 1
    assert "FAILS" in capsys.readouterr().out


def test_what_is_equal_passes():
    assert accelerator._close("outputs", lambda: np.ones(3))["passes"]
