"""Learning rates that are chosen, and bytes of tickets and of rounded models, against NumPy."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from refusals import refusals
from small_model import MODEL

from experiments.language import comparison, stored, text, training
from experiments.language.job import Job, Run
from slth_jax import edge_popup, models, supermask, ticket

JOB = Job(
    model=MODEL,
    schedule=edge_popup.Schedule(steps=8, warmup=1),
    variant=edge_popup.Variant(scope="matrix"),
    dense=True,
    rows=4,
    length=16,
    eval_rows=8,
    chunk=2,
    bits=(16, 3),
)


def test_rounded_matrices_are_the_nearest_of_equal_steps():
    w = np.random.default_rng(0).normal(size=(2, 70, 3)).astype(np.float32)
    for bits in (3, 5):
        values = np.asarray(stored.rounded(w, bits))
        for column in (values[1, :64, 2], values[1, 64:, 2]):
            levels = np.unique(column)
            assert len(levels) <= 2**bits
            steps = np.diff(levels)
            np.testing.assert_allclose(
                steps / steps.min(), np.round(steps / steps.min()), rtol=1e-5
            )
        # Uniform rounding of Gaussian entries, one clip for all: Max (1960), table 2.
        bound = {3: 0.0374, 5: 0.00349}[bits] * np.mean(w**2)
        assert 0.5 * bound < np.mean((values - w) ** 2) < bound
    np.testing.assert_array_equal(stored.rounded(w, 16), w.astype(np.float16).astype(np.float32))


def test_bytes_are_those_of_numbers_and_steps():
    matrices = 2 * 256 * 16 - 240 * 16 + 4 * 16 * 16 + 2 * 16 * 64  # wte, wpe of 16 rows, blocks
    vectors = 9 * 16 + 64 + 2 * 16
    assert stored.num_bytes(MODEL, 16) == 2 * (matrices + vectors)
    steps = 16 * (4 + 1) + 4 * 16 + 64 + 16  # of columns of 256, 16, 16, 16 and 64 entries
    assert stored.num_bytes(MODEL, 4) == matrices // 2 + 2 * steps + 2 * vectors


@pytest.fixture(scope="module")
def corpus(text_folder, tmp_path_factory):
    return text.load(str(text_folder), cache=str(tmp_path_factory.mktemp("cache")))


@pytest.mark.slow
def test_a_trained_model_is_rounded_at_its_best_step(corpus, tmp_path):
    runs = [Run("dense", 0, 1.0, 1.0, 0.01), Run("dense", 1, 1.0, 1.0, 0.02)]
    trained = training.train(JOB, runs, corpus, tmp_path)
    learned = trained.best.moving["trainable"].learned
    valid = text.windows(corpus.valid, rows=8, length=16)
    for index in range(2):
        row = trained.measurement(index)
        assert row["loss_16_bits"] == pytest.approx(row["loss"], rel=1e-3)
        params = {name: jnp.asarray(value[index]) for name, value in learned.items()}
        for name, value in params.items():
            params[name] = stored.rounded(value, 3 if name in MODEL.shapes else 16)
        loss = float(models.loss(params, valid, MODEL.settings))
        assert row["loss_3_bits"] == pytest.approx(loss, rel=1e-5)
        assert row["loss_3_bits"] != pytest.approx(row["loss"], rel=1e-4)


@pytest.mark.slow
def test_bytes_of_a_ticket_are_those_of_its_file(corpus, tmp_path):
    job = dataclasses.replace(JOB, dense=False, schedule=edge_popup.Schedule(steps=2, warmup=1))
    trained = training.train(job, [Run("ticket", 0, 1.0, 0.1, 0.02)], corpus, tmp_path)
    masks = trained.masks(0)
    bits = {name: np.asarray(supermask.pack(mask)) for name, mask in masks.items()}
    shapes = {name: mask.shape for name, mask in masks.items()}
    whole = ticket.Ticket("mine", {}, 0, bits, shapes, "", {})
    path = tmp_path / "a.ticket.safetensors"
    ticket.save(path, whole)
    header = int.from_bytes(path.read_bytes()[:8], "little") + 8
    assert trained.num_bytes(0) == path.stat().st_size - header
    assert trained.num_bytes(0) < sum(x.size for x in bits.values())


def test_the_rate_with_the_lowest_mean_is_chosen_for_each_method():
    losses = {("ticket", 0.1): (3, 5), ("ticket", 0.2): (4, 3.5), ("dense", 0.1): (1, 2)}
    rows = [
        {"model": "nano", "width_multiplier": 1.0, "method": method, "learning_rate": rate}
        | {"nonzero": 1, "seed": seed, "loss": loss}
        for (method, rate), pair in losses.items()
        for seed, loss in enumerate(pair)
    ]
    keys = ("model", "width_multiplier", "method", "nonzero", "learning_rate")
    chosen, kept = comparison._best_rates(comparison.summarize(rows, keys), rows)
    assert {row["method"]: row["learning_rate"] for row in chosen} == {"ticket": 0.2, "dense": 0.1}
    assert [row["loss"] for row in kept] == [4, 3.5, 1, 2]


def test_refusals():
    with refusals("bits must be an integer in"):
        dataclasses.replace(JOB, bits=(1,))
