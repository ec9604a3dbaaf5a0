import dataclasses
import json
import shutil
import types

import jax
import numpy as np
import pytest
from refusals import refusals
from small_model import MODEL

from experiments import __main__ as command
from experiments.language import comparison, cost, outcome, text, training, weight_scale
from experiments.language.job import Job, Run
from experiments.language.model import Model
from slth_jax import edge_popup, models, storage, ticket

JOB = Job(
    model=MODEL,
    schedule=edge_popup.Schedule(steps=8, warmup=1),
    variant=edge_popup.Variant(scope="matrix"),
    rows=4,
    length=16,
    eval_rows=8,
    chunk=2,
)
RUNS = (
    Run("ticket", 0, 1.0, 0.3, 0.02),
    Run("scaled", 1, 2.0, 0.5, 0.01),
)


@pytest.fixture(scope="module")
def corpus(text_folder, tmp_path_factory):
    return text.load(str(text_folder), cache=str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def undisturbed(corpus, tmp_path_factory):
    return training.train(JOB, RUNS, corpus, tmp_path_factory.mktemp("undisturbed"))


class Killed(BaseException):
    pass


def kill_at(step):
    def progress(done, total):
        if done == step:
            raise Killed

    return progress


def curve(outcome):
    return [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in outcome.log]


@pytest.mark.slow
def test_a_killed_run_continues_to_the_same_losses(corpus, tmp_path, undisturbed):
    with pytest.raises(Killed):
        training.train(JOB, RUNS, corpus, tmp_path, progress=kill_at(4))
    (
        tmp_path / "checkpoints" / "step-00000006.tmp"
    ).mkdir()  # the traces of a kill in the middle of a save
    again = training.train(JOB, RUNS, corpus, tmp_path, log_file=tmp_path / "log.jsonl")
    assert curve(again) == curve(undisturbed)
    np.testing.assert_array_equal(again.shuffled, undisturbed.shuffled)
    for name, bits in undisturbed.best.masks.items():
        np.testing.assert_array_equal(again.best.masks[name], bits)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 0, 2, 2, 4, 4, 6, 6, 8, 8]
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [
        "step-00000006",
        "step-00000008",
    ]


@pytest.mark.slow
def test_a_damaged_checkpoint_falls_back_to_the_one_before(corpus, tmp_path):
    """With weights that are re-drawn, so that a resume must restore them as well."""
    variant = edge_popup.Variant(scope="matrix", redraw_every=3)
    job = dataclasses.replace(JOB, variant=variant)
    whole = training.train(job, RUNS, corpus, tmp_path / "whole")
    with pytest.raises(Killed):
        training.train(job, RUNS, corpus, tmp_path / "part", progress=kill_at(6))
    newest = tmp_path / "part" / "checkpoints" / "step-00000006"
    (newest / "notes.json").write_text("[]")
    again = training.train(job, RUNS, corpus, tmp_path / "part")
    assert curve(again) == curve(whole)
    for path in (tmp_path / "part" / "checkpoints").iterdir():
        shutil.rmtree(path / "arrays")
    from_the_beginning = training.train(job, RUNS, corpus, tmp_path / "part")
    assert curve(from_the_beginning) == curve(whole)


@pytest.mark.slow
def test_runs_do_not_depend_on_their_company_or_the_mesh(corpus, tmp_path, undisturbed):
    job = dataclasses.replace(JOB, mesh=(1, 2, 4))
    alone = training.train(job, RUNS[1:], corpus, tmp_path)
    # Other devices add in another order; a score near the threshold may then change sides.
    expected = [row["val_loss"] for row in undisturbed.log if row["run"] == 1]
    np.testing.assert_allclose([row["val_loss"] for row in alone.log], expected, atol=2e-2)
    np.testing.assert_allclose(alone.log[0]["val_loss"], expected[0], rtol=1e-5)


@pytest.mark.slow
def test_training_helps_and_keeps_what_it_says(undisturbed, corpus):
    for index, run in enumerate(RUNS):
        row = undisturbed.measurement(index)
        assert row["loss"] < row["random_mask"] and row["loss"] < row["shuffled_mask"]
        for name, fraction in row["kept"].items():
            size = np.prod(MODEL.shapes[name])
            assert fraction == pytest.approx(run.keep, abs=1 / size)
    speeds = [row["tokens_per_second"] for row in undisturbed.log if row["step"] > 2]
    assert all(speed > 0 for speed in speeds)


@pytest.mark.slow
def test_saved_tickets_have_the_logged_loss(undisturbed, corpus, tmp_path):
    out = types.SimpleNamespace(writes=True, tickets=tmp_path)
    outcome.save_tickets(undisturbed, out)
    assert len(list(tmp_path.iterdir())) == 2
    valid = text.windows(corpus.valid, rows=8, length=16)
    for index, run in enumerate(RUNS):
        path = tmp_path / f"{run.name}.ticket.safetensors"
        params = ticket.materialize(ticket.load(path))
        loss = float(models.loss(params, valid, MODEL.settings))
        assert loss == pytest.approx(float(undisturbed.best.loss[index]), rel=1e-5)


def test_source_weights_do_not_change(corpus):
    group = training.together(JOB, RUNS, corpus)
    state, _ = group.advance(group.start(), 0, 2)
    for index, run in enumerate(RUNS):
        key = jax.random.key(run.seed, impl="threefry2x32")
        source = MODEL.init(key, run.qk_scale)
        for name, weights in source.items():
            np.testing.assert_array_equal(state.weights[name][index], weights)


@pytest.mark.slow
def test_a_loss_that_is_nan_names_the_step_and_the_run(corpus, tmp_path):
    job = dataclasses.replace(JOB, dense=True, schedule=edge_popup.Schedule(steps=8, warmup=6))
    runs = [Run("dense", 0, 1.0, 1.0, 1e37)]
    message = r"^\w+ loss must be finite, got nan at step \d of run dense with seed 0 "
    with refusals(message + r"\(learning_rate=1e\+37, keep=1, qk_scale=1\)"):
        training.train(job, runs, corpus, tmp_path)
    gentle = [runs[0]._replace(learning_rate=0.01)]
    with pytest.raises(Killed):
        training.train(job, gentle, corpus, tmp_path, progress=kill_at(2))
    with pytest.raises(storage.CheckpointError, match=r"learning_rate is 0\.01 there"):
        training.train(job, runs, corpus, tmp_path)
    assert (tmp_path / "checkpoints" / "step-00000002" / "SHA256SUMS").exists()


def test_refusals(corpus, tmp_path):
    narrow = dataclasses.replace(MODEL.settings, vocab_size=100, outputs=100)
    small = dataclasses.replace(JOB, model=Model(narrow, MODEL.initial))
    with refusals(r"^vocab_size must be at least the tokenizer's 256, got"):
        training.train(small, RUNS, corpus, tmp_path)
    with refusals(r"^length must be at most the model's max_length = 16"):
        dataclasses.replace(JOB, length=17)
    with refusals(r"^accumulate must be a divisor of rows = 4, got 3"):
        dataclasses.replace(JOB, accumulate=3)
    with refusals(r"^mesh must be of 8 devices in all, got \(1, 2, 2\)"):
        training.together(dataclasses.replace(JOB, mesh=(1, 2, 2)), RUNS, corpus)
    with refusals(r"^keep must be a number in \(0, 1\], got 0"):
        training.together(JOB, [RUNS[0]._replace(keep=0.0)], corpus)


def test_user_mistakes_are_one_line(capsys, tmp_path):
    for option, message in (
        ("keep=0", r"keep must be a number in (0, 1], got 0.0"),
        ("length=300", "length must be at most the model's max_length = 256, got 300"),
        ("data=/nowhere", "data must be a folder with wikitext-2/train.txt"),
        ("variant=best", "variant must be one of 'ramanujan'"),
        ("models=huge", "model must be one of 'nano'"),
    ):
        arguments = ["weight-scale", "--out", str(tmp_path / option[:4]), "--set", option]
        assert command.main(arguments) == 2
        # A line with the time and the versions may stand before the refusal.
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ") and message in error


@pytest.mark.slow
def test_dry_run_numbers():
    lines = comparison.dry_run(comparison.PRESETS["paper"])
    assert "small x1, tickets: 124,439,808 parameters" in lines
    assert "H100 SXM" in lines and "GB per run" in lines
    assert "40 runs per model" in weight_scale.dry_run(weight_scale.PRESETS["quick"])
    tiny = Model(*models.preset("tiny", vocab_size=300))
    variant = edge_popup.Variant(scope="matrix")
    weights, trainable = tiny.start(jax.random.key(0), variant)
    params = edge_popup.ticket(None, weights, trainable, 0.3, variant)
    nonzero = sum(int((np.asarray(value) != 0).sum()) for value in params.values())
    assert cost.num_nonzero(tiny, 0.3) == nonzero
    small = Model(*models.preset("small"))
    weights_in_products = 12 * 12 * 768**2 + 50257 * 768
    assert cost.flops_per_token(small, 0) == 6 * weights_in_products


@pytest.mark.slow
def test_the_paper_recipe():
    config = weight_scale.PRESETS["paper"]
    job = config.job("mini")
    assert (job.schedule.steps, job.schedule.warmup, config.learning_rate) == (11350, 227, 1e-4)
    assert job.rows * job.length == 512 * 1024 and config.keep == 0.3 and config.seeds == 3
    assert job.model == Model(*models.preset("mini")[:1], models.Initial(0.02, 0.02))
