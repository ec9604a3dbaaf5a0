"""The experiments as a user runs them: small runs, their files, and one line for each mistake."""

import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import fits, folder, options, registry
from experiments.__main__ import main
from experiments.theory import data, input_length, modular, pretrained
from slth_jax import storage, sweep, ticket

SHARED = Path(os.environ.get("SLTH_DATA", Path(__file__).parents[3] / "shared" / "data"))
SMALL = ["--set", "widths=4,8,20", "--seeds", "3", "--set", "epochs=1", "--quiet"]


@pytest.fixture(autouse=True)
def float32_again():
    """Experiments switch float64 on; the next test must find it off."""
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture(scope="module")
def hidden_dim(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "hidden"
    assert main(["hidden-dim", "--out", str(out), *SMALL]) == 0
    jax.config.update("jax_enable_x64", False)
    return out


def test_a_run_leaves_everything_behind(hidden_dim, capsys):
    names = {path.name for path in hidden_dim.iterdir()}
    assert {"config.json", "rows.jsonl", "summary.json", "checkpoints", "tickets"} <= names
    assert {"hidden_dim.png", "hidden_dim.svg"} <= names
    rows = [json.loads(line) for line in (hidden_dim / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == 9
    assert {(row["width"], row["seed"]) for row in rows} == {
        (width, seed) for width in (4, 8, 20) for seed in range(3)
    }
    summary = json.loads((hidden_dim / "summary.json").read_text())
    assert summary["paper"] == {"gamma": 0.8, "delta": 0.06}
    assert {"gamma", "delta", "gamma_se", "delta_se"} <= summary["fit"].keys()
    for row in summary["rows"]:
        errors = [r["error"] for r in rows if r["width"] == row["width"]]
        assert row["mean"] == pytest.approx(np.mean(errors))
        assert row["std"] == pytest.approx(np.std(errors, ddof=1))
        assert row["count"] == 3
    assert summary["rows"][0]["mean"] > summary["rows"][-1]["mean"]
    for told in summary["guarantees"]:
        assert told["error"] <= told["bound"]
    config = json.loads((hidden_dim / "config.json").read_text())
    assert config["options"]["widths"] == [4, 8, 20]


def test_its_ticket_is_whole_and_computes_what_the_run_says(hidden_dim):
    (path,) = (hidden_dim / "tickets").glob("*.ticket.safetensors")
    report = ticket.verify(path)
    masks = ticket.masks(report.ticket)
    stored = sweep.load(hidden_dim / "checkpoints")
    index = next(i for i, r in enumerate(stored.rows) if (r["width"], r["seed"]) == (20, 0))
    for name, mask in stored.arrays(index).items():
        np.testing.assert_array_equal(masks[name], mask)


def test_a_trial_does_not_depend_on_what_else_is_in_the_batch(hidden_dim, tmp_path):
    """Neither on the other widths, nor on the padded size, nor on the number of seeds."""
    out = tmp_path / "alone"
    small = ["--set", "widths=8", "--seeds", "2", "--set", "epochs=1", "--quiet"]
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
        assert batched.rows[j]["error"] == pytest.approx(row["error"], rel=1e-12)


def test_the_same_run_again_is_finished_and_another_is_refused(hidden_dim, capsys):
    before = (hidden_dim / "summary.json").read_bytes()
    assert main(["hidden-dim", "--out", str(hidden_dim), *SMALL]) == 0
    assert (hidden_dim / "summary.json").read_bytes() == before
    other = ["hidden-dim", "--out", str(hidden_dim), *SMALL, "--set", "length=8"]
    assert main(other) == 2
    line = capsys.readouterr().err
    assert "holds results for length=4, not 8; use another folder" in line
    assert (hidden_dim / "summary.json").read_bytes() == before


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
    sets = ["--set", "lengths=8,600", "--set", "widths=8", "--set", "epochs=1"]
    assert main(["input-length", "--out", str(out), *small, *sets]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert [row["length"] for row in summary["rows"]] == [8, 600]
    assert (out / "input_length.svg").exists()


MISTAKES = [
    (["nothing"], r"experiment must be one of 'hidden-dim'"),
    (["hidden-dim", "--preset", "huge"], "preset must be one of 'quick', 'paper'"),
    (["hidden-dim", "--set", "wide=4"], "option must be one of 'seeds', 'widths'"),
    (["hidden-dim", "--set", "widths=four"], "option widths must be of type int, got 'four'"),
    (["hidden-dim", "--set", "widths"], "--set must be of the form option=value, got 'widths'"),
    (["hidden-dim", "--seeds", "0"], "seeds must be an integer >= 1, got 0"),
    (["hidden-dim", "--devices", "0"], "--devices must be an integer >= 1, got 0"),
    (["hidden-dim", "--set", "widths=1,8"], "widths must be an integer >= 2, got 1"),
    (["hidden-dim", "--set", "sources=gauss"], "sources must be one of 'theory', 'xavier'"),
    (["hidden-dim", "--set", "construction=best"], "construction must be one of 'proof', 'reach'"),
    (["trained-target", "--weights", "none.npz"], "weights must be a NumPy archive (.npz)"),
    (["hidden-dim", "--out", "/proc/results"], "cannot make the folder /proc/results"),
    (["hidden-dim", "--out", __file__], "--out must be a folder, got a file"),
    (["hidden-dim", "--out", str(Path(__file__).parent)], "is not a run's folder"),
]


@pytest.mark.parametrize("arguments, message", MISTAKES)
def test_mistakes_get_one_line_and_leave_nothing(arguments, message, tmp_path, capsys):
    out = [] if "--out" in arguments else ["--out", str(tmp_path / "out")]
    assert main([*arguments, *out, "--quiet"]) == 2
    said = capsys.readouterr()
    assert message in said.err and said.err.count("\n") == 1 and not said.out
    assert not (tmp_path / "out" / "summary.json").exists()


def test_list_names_every_experiment(capsys):
    assert main(["list"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in registry.EXPERIMENTS)


def test_fits_recover_known_curves():
    n = np.arange(4, 101, 8)
    fit = fits.exponential(n, 0.8 * np.exp(-0.06 * n))
    assert fit["gamma"] == pytest.approx(0.8) and fit["delta"] == pytest.approx(0.06)
    assert fit["log_delta"] == pytest.approx(0.06) and fit["delta_se"] < 1e-6
    noisy = 0.8 * np.exp(-0.06 * n) * np.exp(0.1 * np.random.default_rng(0).normal(size=n.size))
    fit = fits.exponential(n, noisy)
    assert abs(fit["log_delta"] - 0.06) < 4 * fit["log_delta_se"]
    shared = fits.log_gamma_at(n, noisy, 0.06)
    assert shared["gamma"] == pytest.approx(0.8, rel=0.2) and 0.02 < shared["residual"] < 0.2
    line = fits.slope([0, 1, 2, 3], [1.0, 3.1, 4.9, 7.0])
    assert line["low"] < 2 < line["high"] and line["slope"] == pytest.approx(1.98)


def test_angular_velocity_is_what_the_paper_says():
    key = jax.random.key(0, impl="threefry2x32")
    made = data.angular_velocity(key, 4000, 32, min_length=4)
    lengths = np.asarray(made.length)
    assert set(lengths) == {4, 8, 16, 32}
    x, w = np.asarray(made.x), np.asarray(made.w)
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


def archive(network, turned=False):
    """Return a network as the arrays of an archive, in one layout or the other."""

    def turn(w):
        return np.swapaxes(np.asarray(w), -1, -2) if turned else np.asarray(w)

    attn, layers = network.blocks[0].attention, network.blocks[0].layers
    h, v, m = attn.w_o.shape
    w_o = np.asarray(attn.w_o)
    return {
        "embed.W_E": turn(network.w_e),
        "pos_embed.W_pos": np.asarray(network.w_pos),
        **{f"blocks.0.attn.W_{n}": turn(getattr(attn, f"w_{n.lower()}")) for n in "QKV"},
        "blocks.0.attn.W_O": w_o.reshape(h * v, m).T if turned else w_o,
        "blocks.0.mlp.W_in": turn(layers[0].w),
        "blocks.0.mlp.b_in": np.asarray(layers[0].b),
        "blocks.0.mlp.W_out": turn(layers[1].w),
        "blocks.0.mlp.b_out": np.asarray(layers[1].b),
        "unembed.W_U": turn(network.w_u),
    }


def test_a_small_network_learns_to_add_and_is_read_back_in_both_layouts(tmp_path):
    key = jax.random.key(0, impl="threefry2x32")
    network = modular.train(key, modulus=7, d=32, heads=2, hidden=40, steps=300)
    task = pretrained.task_of(network)
    assert task.name == "addition modulo 7" and task.tokens.shape == (49, 3)
    scores = pretrained.score(network, task, pretrained.read_out(network, task, network.blocks))
    assert float(scores["accuracy"]) == 1.0 and float(scores["margin"]) > 0
    for turned in (False, True):
        path = tmp_path / f"net{turned}.npz"
        np.savez(path, **archive(network, turned))
        again = pretrained.load(str(path))
        for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(network), strict=True):
            np.testing.assert_array_equal(a, b)


def test_networks_that_the_theory_does_not_cover_are_refused(tmp_path):
    path = tmp_path / "net.npz"
    np.savez(path, **{"blocks.0.ln1.w": np.ones(3), "pos_embed.W_pos": np.ones((3, 3))})
    with pytest.raises(ValueError, match=r"^weights must be a network without normalisation"):
        pretrained.load(str(path))
    path.write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"^weights must be a NumPy archive"):
        pretrained.load(str(path))
    np.savez(path, **{"pos_embed.W_pos": np.ones((3, 3))})
    with pytest.raises(ValueError, match=r"^weights must be an archive with"):
        pretrained.load(str(path))


@pytest.mark.skipif(
    not (SHARED / "pretrained").is_dir(), reason=f"no published networks under {SHARED}"
)
def test_published_networks_do_what_their_authors_say():
    network = pretrained.load(str(SHARED / "pretrained" / "modadd113_1L_d128_h4.npz"))
    task = pretrained.task_of(network)
    scores = pretrained.score(network, task, pretrained.read_out(network, task, network.blocks))
    assert task.answers.size == 12_769 and float(scores["accuracy"]) == 1.0
    network = pretrained.load(str(SHARED / "pretrained" / "induction_2L_d48_h4.npz"))
    task = pretrained.task_of(network)
    scores = pretrained.score(network, task, pretrained.read_out(network, task, network.blocks))
    assert float(scores["loss"]) < 3.0 < np.log(128)
    with pytest.raises(ValueError, match="without normalisation"):
        pretrained.load(str(SHARED / "pretrained" / "brackets_3L_d56_h2.npz"))


def test_a_folder_is_held_by_one_run_at_a_time(tmp_path):
    config = options.configure(registry.load("hidden-dim").PRESETS, "quick", {}, None)
    with (
        folder.open(str(tmp_path / "run"), "hidden-dim", config),
        pytest.raises(storage.Locked, match="in use"),
        folder.open(str(tmp_path / "run"), "hidden-dim", config),
    ):
        pass
