"""Every command and function that writes or reads a path does so in a bucket."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.__main__ import main as experiments
from slth_jax import cli, edge_popup, initializers, models, storage, sweep, ticket
from slth_jax.storage import CheckpointError

SWEEP = {"seeds": 6, "grid": {"scale": [0.5, 2.0]}, "chunk": 4, "batch": 2}


def trial(key, hparams):
    x = hparams["scale"] * jax.random.normal(key, (4,))
    return {"error": jnp.linalg.norm(x)}, {"mask": x > 0.5}


def test_a_sweep_is_resumed_and_loaded(url):
    class Stop(Exception):
        pass

    def stop(done, total):
        if done >= 4:
            raise Stop

    reference = sweep.run(trial, **SWEEP)
    with pytest.raises(Stop):
        sweep.run(trial, out=url, progress=stop, **SWEEP)
    with pytest.raises(CheckpointError, match=r"lacks .* of 12 trials"):
        sweep.load(url)
    results = sweep.run(trial, out=url, **SWEEP)
    assert results.computed == 8
    for again in (results, sweep.load(url)):
        assert again.rows == reference.rows
        np.testing.assert_array_equal(again.arrays(7)["mask"], reference.arrays(7)["mask"])
    table = (storage.place(url) / "table.csv").read_text()
    assert table.startswith("scale,seed,error\n0.5,0,")
    longer = sweep.run(trial, out=url, **{**SWEEP, "seeds": 7})
    assert longer.computed == 2 and len(sweep.load(url)) == 14
    with pytest.raises(CheckpointError, match="holds another sweep"):
        sweep.run(trial, out=url, **{**SWEEP, "grid": {"scale": [1.0]}})


def test_a_ticket_is_saved_loaded_verified_and_exported(url, tmp_path, capsys):
    options = {"num_heads": 1, "d_in": 2, "d_out": 2, "n_k": 8, "n_v": 8}
    source = initializers.theory_attention(jax.random.key(3, impl=ticket.IMPL), **options)
    positive, negative = (
        ticket.create("theory", options, 3, jax.tree.map(keep, source))
        for keep in (lambda w: w > 0, lambda w: w < 0)
    )
    path = f"{url}/a.ticket.safetensors"
    ticket.save(path, positive)
    ticket.save(path, positive)
    with pytest.raises(CheckpointError, match="exists and differs; pass overwrite=True"):
        ticket.save(path, negative)
    ticket.save(tmp_path / "a.ticket.safetensors", positive)
    assert storage.read_bytes(path) == storage.read_bytes(tmp_path / "a.ticket.safetensors")
    assert ticket.verify(path).num_kept == sum(map(positive.num_kept, positive.shapes))
    lazy = ticket.open(path)
    np.testing.assert_array_equal(lazy.bits["w_q"], positive.bits["w_q"])
    assert cli.main(["ticket", "verify", path]) == 0
    assert cli.main(["ticket", "export", path, "--out", f"{url}/a.npz"]) == 0
    assert storage.read_numpy(f"{url}/a.npz")["w_q"].shape == source.w_q.shape
    assert cli.main(["ticket", "verify", f"{url}/b.ticket.safetensors"]) == 2
    assert capsys.readouterr().err.startswith(f"error: cannot read {url}/b.ticket.safetensors: no")


def test_a_fit_goes_on_after_a_stop(url):
    class Stop(Exception):
        pass

    def stop(step, steps, entry):
        if step >= 10:
            raise Stop

    key = jax.random.key(3, impl="threefry2x32")
    params = {"w": jax.random.normal(key, (8, 4))}

    def batch(step):
        return jax.random.normal(jax.random.fold_in(key, step), (16, 8))

    def loss(params, x):
        return jnp.mean((x @ params["w"] - x[:, :4]) ** 2)

    def fit(out=None, progress=None):
        schedule = edge_popup.Schedule(steps=20)
        training = edge_popup.Training(
            steps=20, optimizer=schedule.optimizer(0.1), evaluate_every=5, progress=progress
        )
        [result] = edge_popup.fit(key, params, loss, batch, training=training, seeds=1, out=out)
        return result

    with pytest.raises(Stop):
        fit(url, stop)
    steps = []
    result = fit(url, lambda step, *_: steps.append(step))
    assert steps == [15, 20]
    np.testing.assert_array_equal(result.masks["w"], fit().masks["w"])
    names = [path.name for path in (storage.place(url) / "checkpoints").iterdir()]
    assert names == ["step-00000015.safetensors", "step-00000020.safetensors"]


@pytest.mark.slow
def test_a_model_is_hidden_from_a_bucket_to_a_bucket(url, tmp_path, capsys):
    settings = models.make_settings(
        vocab_size=11, width=8, num_blocks=1, num_heads=2, max_length=8, activation="relu"
    )
    params = models.initialise(jax.random.key(1), settings, models.Initial(sd=0.3))
    places = {"bucket": url, "folder": str(tmp_path)}
    for place in places.values():
        models.weights.save(f"{place}/model", params, settings)
        command = ["hide", f"{place}/model", "--samples", "8", "--prompt", "1 2", "--length", "4"]
        assert cli.main([*command, "--out", f"{place}/out", "--quiet"]) == 0, capsys.readouterr()
    bits = [ticket.load(f"{p}/out/ticket.safetensors").bits for p in places.values()]
    assert len(bits[0]) > 5 and storage.array_hash(bits[0]) == storage.array_hash(bits[1])
    names = [path.name for path in storage.place(f"{url}/out").iterdir()]
    assert names == ["config.json", "generated.json", "summary.json", "ticket.safetensors"]
    capsys.readouterr()
    texts = []
    for place in places.values():
        ticket_file = f"{place}/out/ticket.safetensors"
        assert cli.main(["generate", ticket_file, "--prompt", "1 2", "--length", "4"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != ""
    assert cli.main(["hide", f"{url}/nothing", "--out", f"{url}/out"]) == 2
    assert (
        capsys.readouterr().err == f"error: cannot read {url}/nothing: no such object or folder\n"
    )


@pytest.mark.slow
def test_an_experiment_and_its_page(url, tmp_path, capsys):
    options = ["--set", "widths=8,12", "--set", "target=drawn", "--seeds", "2", "--quiet"]
    for out in (f"{url}/fig4", str(tmp_path / "fig4")):
        assert experiments(["hidden-dim", *options, "--out", out]) == 0, capsys.readouterr()
    rows = [storage.read_bytes(f"{p}/fig4/rows.jsonl") for p in (url, str(tmp_path))]
    assert rows[0] == rows[1]
    assert experiments(["hidden-dim", *options, "--out", f"{url}/fig4"]) == 0
    assert "finished before" in capsys.readouterr().out
    assert experiments(["report", url, "--out", f"{url}/report.html"]) == 0
    page = (storage.place(url) / "report.html").read_text()
    assert "data:image/svg+xml" in page and re.search('href="fig4/rows.jsonl"', page)
    summary = storage.read_json(f"{url}/fig4/summary.json")
    assert json.loads(rows[0].splitlines()[0]) and summary["rows"]
    assert experiments(["hidden-dim", *options, "--seeds", "3", "--out", f"{url}/fig4"]) == 0
    line = ["hidden-dim", "--set", "widths=8", "--quiet", "--out", f"{url}/fig4"]
    assert experiments(line) == 2
    assert re.search("error: gs|s3.*holds another run", capsys.readouterr().err)
