"""Figures 4 to 6: their runs, data and fits."""

import json

import jax
import numpy as np
import pytest

from experiments import curves
from experiments.__main__ import main
from experiments.paper import data, input_length
from experiments.paper import hidden_dim as experiment
from slth_jax import storage, sweep, ticket

SMALL = ["--set", "epochs=1", "--set", "targets=3", "--quiet"]
HIDDEN_DIM = ["--set", "widths=4,8,20", "--seeds", "3", *SMALL]


@pytest.fixture(scope="module")
def hidden_dim(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "hidden"
    assert main(["hidden-dim", "--out", str(out), *HIDDEN_DIM]) == 0
    jax.config.update("jax_enable_x64", False)
    return out


def test_a_run_leaves_everything_behind(hidden_dim, capsys):
    names = {path.name for path in hidden_dim.iterdir()}
    assert {"config.json", "rows.jsonl", "summary.json", "checkpoints", "tickets"} <= names
    assert {"hidden_dim.png", "hidden_dim.svg"} <= names
    rows = [json.loads(line) for line in (hidden_dim / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == 9 * (1 + 3)
    of_target = {}
    for row in rows:
        place = of_target.setdefault((row["target"], row["target_index"]), set())
        place.add((row["width"], row["seed"]))
    settings = {(width, seed) for width in (4, 8, 20) for seed in range(3)}
    assert of_target == dict.fromkeys([("trained", 0), *(("drawn", i) for i in range(3))], settings)
    summary = json.loads((hidden_dim / "summary.json").read_text())
    assert summary["paper"] == {"gamma": 0.8, "delta": 0.06}
    assert {"gamma", "delta", "gamma_se", "delta_se"} <= summary["fit"].keys()
    for row in summary["rows"]:
        where = [r for r in rows if all(r[name] == row[name] for name in ("width", "target"))]
        errors = [r["error"] for r in where]
        assert row["mean"] == pytest.approx(np.mean(errors))
        assert row["std"] == pytest.approx(np.std(errors, ddof=1))
        assert [row["low"], row["high"]] == pytest.approx(np.quantile(errors, (0.1, 0.9)))
        assert row["count"] == (3 if row["target"] == "trained" else 9)
        if row["target"] == "drawn":
            means = [
                np.mean([r["error"] for r in where if r["target_index"] == i]) for i in range(3)
            ]
            low, high = row["targets_low"], row["targets_high"]
            assert [low, high] == pytest.approx(np.quantile(means, (0.1, 0.9)))
    for target in ("trained", "drawn"):
        of_widths = [row["mean"] for row in summary["rows"] if row["target"] == target]
        assert of_widths[0] > of_widths[-1]
    for row in summary["guarantees"]:
        assert row["error"] <= row["bound"]
    config = json.loads((hidden_dim / "config.json").read_text())
    assert config["options"]["widths"] == [4, 8, 20]


def test_the_fit_of_drawn_targets_is_made_of_all_and_of_each(hidden_dim):
    rows = [json.loads(line) for line in (hidden_dim / "rows.jsonl").read_text().splitlines()]
    drawn = [row for row in rows if row["target"] == "drawn"]
    fit = json.loads((hidden_dim / "summary.json").read_text())["fit_drawn"]
    widths = sorted({row["width"] for row in drawn})
    means = np.array(
        [
            [
                np.mean([r["error"] for r in drawn if (r["width"], r["target_index"]) == (n, i)])
                for i in range(3)
            ]
            for n in widths
        ]
    )
    assert fit["targets"] == 3
    together = curves.exponential(widths, means.mean(axis=1))
    assert fit["gamma"] == pytest.approx(together["gamma"], rel=1e-6)
    single = [curves.exponential(widths, column)["delta"] for column in means.T]
    assert fit["single"]["delta"]["50 %"] == pytest.approx(np.median(single), rel=1e-6)
    assert fit["single"]["delta"]["10 %"] <= fit["single"]["delta"]["90 %"]


def test_its_ticket_is_whole_and_computes_what_the_run_says(hidden_dim):
    (path,) = (hidden_dim / "tickets").glob("*.ticket.safetensors")
    report = ticket.verify(path)
    masks = ticket.masks(report.ticket)
    stored = sweep.load(hidden_dim / "checkpoints")
    index = next(i for i, r in enumerate(stored.rows) if (r["width"], r["seed"]) == (20, 0))
    stored_masks = stored.arrays(index)
    for name, mask in masks.items():
        np.testing.assert_array_equal(mask, stored_masks[name])


@pytest.mark.slow
def test_the_error_that_its_ticket_claims_is_verified(hidden_dim):
    (path,) = (hidden_dim / "tickets").glob("*.ticket.safetensors")
    with jax.enable_x64(True):  # as in the run
        config = experiment.Config(epochs=1)
        target = experiment.make_target(config)
        sequences = experiment.test_sequences(config.test_sequences, config.length, 0)
        x = data.with_token(target.token, sequences)
        report = ticket.verify(path, target=target.params, inputs=x)
        assert report.error == pytest.approx(report.ticket.metadata["error"], rel=1e-9)
        with pytest.raises(storage.CheckpointError, match="as recorded"):
            ticket.verify(path, target=target.params, inputs=2 * x)


@pytest.mark.slow
def test_a_trial_does_not_depend_on_what_else_is_in_the_batch(hidden_dim, tmp_path):
    """Neither on the other widths, nor on the padded size, nor on the number of seeds."""
    out = tmp_path / "alone"
    small = ["--set", "widths=8", "--seeds", "2", *SMALL]
    assert main(["hidden-dim", "--out", str(out), *small]) == 0
    alone, batched = sweep.load(out / "checkpoints"), sweep.load(hidden_dim / "checkpoints")
    for i, row in enumerate(alone.rows):
        j = next(
            k
            for k, other in enumerate(batched.rows)
            if (other["width"], other["seed"]) == (row["width"], row["seed"])
        )
        for name, mask in alone.arrays(i).items():
            wide = batched.arrays(j)[name]
            inside = tuple(slice(0, size) for size in mask.shape)
            np.testing.assert_array_equal(wide[inside], mask)
            assert wide.sum() == mask.sum()
        # float64 sums of a few products, grouped differently
        np.testing.assert_allclose(batched.rows[j]["error"], row["error"], rtol=1e-12)


@pytest.mark.slow
def test_blocks_and_input_length_run(tmp_path):
    small = ["--seeds", "2", "--set", "test_sequences=2", "--quiet"]
    out = tmp_path / "blocks"
    sets = ["--set", "widths=8,16,24", "--set", "max_blocks=2"]
    assert main(["blocks", "--out", str(out), *small, *sets]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert [(r["num_blocks"], r["width"]) for r in summary["rows"]] == [
        (b, n) for b in (1, 2) for n in (8, 16, 24)
    ]
    out = tmp_path / "length"
    sets = [
        "--set",
        "lengths=8,600",
        "--set",
        "widths=8",
        "--set",
        "epochs=1",
        "--set",
        "targets=2",
    ]
    assert main(["input-length", "--out", str(out), *small, *sets]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert [(row["target"], row["length"]) for row in summary["rows"]] == [
        (target, length) for target in ("trained", "drawn") for length in (8, 600)
    ]
    assert (out / "input_length.svg").exists()


def test_fits_recover_known_curves():
    n = np.arange(4, 101, 8)
    fit = curves.exponential(n, 0.8 * np.exp(-0.06 * n))
    assert fit["gamma"] == pytest.approx(0.8) and fit["delta"] == pytest.approx(0.06)
    assert fit["log_delta"] == pytest.approx(0.06) and fit["delta_se"] < 1e-6
    noisy = 0.8 * np.exp(-0.06 * n) * np.exp(0.1 * np.random.default_rng(0).normal(size=n.size))
    fit = curves.exponential(n, noisy)
    assert abs(fit["log_delta"] - 0.06) < 4 * fit["log_delta_se"]
    shared = curves.log_gamma_at(n, noisy, 0.06)
    assert shared["gamma"] == pytest.approx(0.8, rel=0.2) and 0.02 < shared["residual"] < 0.2
    line = curves.slope([0, 1, 2, 3], [1.0, 3.1, 4.9, 7.0])
    assert line["low"] < 2 < line["high"] and line["slope"] == pytest.approx(1.98)


def test_angular_velocity_is_what_the_paper_says():
    key = jax.random.key(0, impl="threefry2x32")
    sequences_ = data.angular_velocity(key, 4000, 32, min_length=4)
    lengths = np.asarray(sequences_.length)
    assert set(lengths) == {4, 8, 16, 32}
    x, w = np.asarray(sequences_.x), np.asarray(sequences_.w)
    for t in (0, 3):
        np.testing.assert_allclose(np.linalg.norm(x[:, t], axis=-1), 1, atol=1e-5)
    assert not x[lengths == 8, 8:].any()
    turned = np.arctan2(x[:, 1, 1], x[:, 1, 0]) - np.arctan2(x[:, 0, 1], x[:, 0, 0])
    np.testing.assert_allclose(np.cos(turned), np.cos(w), atol=1e-4)
    np.testing.assert_allclose(np.sin(turned), np.sin(w), atol=1e-4)
    assert np.all(x[:, 0, 1] >= -1e-6), "theta in [0, pi]"
    # Five standard errors of the variance of a uniform variable.
    spread = np.sqrt(np.pi**4 * 4 / 45 / w.size)
    assert abs(w.var() - data.VELOCITY_VARIANCE) < 5 * spread


def test_query_rows_are_spread_and_include_the_token():
    assert input_length.query_rows(100, 256) is None
    rows = np.asarray(input_length.query_rows(8193, 256))
    assert rows[0] == 0 and rows[-1] == 8192 and len(rows) == 256
    assert np.ptp(np.diff(rows)) <= 1
