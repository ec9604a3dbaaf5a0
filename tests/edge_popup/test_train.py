"""The loop under `fit` and the language experiments: many runs, best parameters, SIGTERM."""

import dataclasses
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import refusals

from slth_jax import edge_popup, supermask

KEY = jax.random.key(4, impl="threefry2x32")
ITERAND = edge_popup.Variant(redraw_every=3, redraw_rate=0.5)
SCHEDULE = edge_popup.Schedule(steps=8, warmup=1, weight_decay=0.0)
SHAPES = {"a": (4, 16), "b": (16, 2)}
KEEP, RATE = (0.3, 0.6), (0.02, 0.05)


def draw(key):
    keys = jax.random.split(key, 2)
    return {n: jax.random.normal(k, s) for k, (n, s) in zip(keys, SHAPES.items(), strict=True)}


def loss(params, rows):
    x, y = rows
    return jnp.mean((jax.nn.relu(x @ params["a"]) @ params["b"] + params["bias"][None] - y) ** 2)


def batch(step):
    x = np.random.default_rng(step).normal(size=(8, 4)).astype(np.float32)
    return x, np.tanh(x[:, :2])


def started(key, rate):
    weights = draw(key)
    scores = edge_popup.init_scores(jax.random.fold_in(key, 1 << 20), weights, ITERAND)
    trainable = edge_popup.Trainable(scores, {"bias": jnp.zeros(2)})
    return edge_popup.start(weights, trainable, SCHEDULE.optimizer(rate))


@pytest.fixture(scope="module")
def program():
    return edge_popup.Program(edge_popup.Task(loss, SCHEDULE.optimizer(0.0), ITERAND), 2)


@pytest.fixture
def runs(program):
    keys = jax.random.split(KEY, 2)

    def batches(begin, end):
        steps = [batch(step) for step in range(begin, end)]
        return tuple(np.stack([np.stack(part)] * 2) for part in zip(*steps, strict=True))

    return edge_popup.Runs(
        program,
        keys,
        jnp.array(KEEP),
        SCHEDULE.steps,
        start=lambda: jax.tree.map(lambda *x: jnp.stack(x), *map(started, keys, RATE)),
        batches=batches,
        validation=[batch(99), batch(98)],
        draw=jax.vmap(draw),
        names=lambda index: f"run {index}",
    )


def same(left, right):
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(a, b)


def numbers(log):
    return [{k: v for k, v in entry.items() if k != "steps_per_second"} for entry in log]


@pytest.mark.slow
def test_runs_in_one_program_are_fits_of_their_own(runs):
    trained = edge_popup.train(runs, evaluate_every=4, evaluate_first=True)
    assert [entry["step"] for entry in trained.log] == [0, 4, 8]
    for index, key in enumerate(jax.random.split(KEY, 2)):
        training = edge_popup.Training(
            SCHEDULE.steps, SCHEDULE.optimizer(RATE[index]), validation=runs.validation,
            evaluate_every=4, evaluate_first=True,
        )  # fmt: skip
        [alone] = edge_popup.fit(
            key, lambda k: {**draw(k), "bias": jnp.zeros(2)}, loss, batch, keep=KEEP[index],
            training=training, masking=edge_popup.Masking(ITERAND, learn=lambda n, x: True),
        )  # fmt: skip
        for mine, theirs in zip(trained.log, alone.log, strict=True):
            assert mine["validation"][index] == pytest.approx(theirs["validation"], rel=1e-4)
        assert trained.best.step[index] == alone.best_step
        for name, shape in SHAPES.items():
            bits = supermask.unpack(trained.best.masks[name][index], shape)
            np.testing.assert_array_equal(bits, alone.masks[name])
            kept = trained.best.moving["weights"][name][index] * np.asarray(bits)
            np.testing.assert_allclose(kept, alone.ticket[name], rtol=1e-6)
        bias = trained.best.moving["trainable"].learned["bias"][index]
        np.testing.assert_allclose(bias, alone.ticket["bias"], atol=1e-5)


def test_the_best_of_each_run_is_kept_with_its_params_or_without():
    before = edge_popup.Best(
        np.float32([1, 1]), np.int32([2, 2]), {"m": np.uint8([[1], [1]])}, {"p": np.zeros((2, 3))}
    )
    now = before._replace(masks={"m": np.uint8([[9], [9]])}, moving={"p": np.ones((2, 3))})
    after = before.updated(np.array([2.0, 0.5]), 4, now)
    np.testing.assert_array_equal(after.loss, [1, 0.5])
    np.testing.assert_array_equal(after.step, [2, 4])
    np.testing.assert_array_equal(after.masks["m"], [[1], [9]])
    np.testing.assert_array_equal(after.moving["p"], [[0, 0, 0], [1, 1, 1]])


@pytest.mark.slow
@pytest.mark.parametrize("best_params", [True, False])
def test_sigterm_ends_after_the_steps_in_flight_and_the_rest_has_the_same_bits(
    runs, tmp_path, best_params
):
    options = {"evaluate_every": 8, "best_params": best_params}
    whole = edge_popup.train(runs, **options)
    assert bool(whole.best.moving) == best_params

    def interrupted(begin, end):
        if begin == 3:  # between two evaluations
            os.kill(os.getpid(), signal.SIGTERM)
        return runs.batches(begin, end)

    with pytest.raises(SystemExit) as stopped:
        edge_popup.train(
            dataclasses.replace(runs, batches=interrupted), out=tmp_path, config={"n": 1}, **options
        )
    assert stopped.value.code == 143
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000006"]
    with pytest.raises(Exception, match="holds another fit: n is 1 there and 2 here"):
        edge_popup.train(runs, out=tmp_path, config={"n": 2}, **options)
    again = edge_popup.train(runs, out=tmp_path, config={"n": 1}, **options)
    assert numbers(again.log) == numbers(whole.log)
    same((again.state, again.best), (whole.state, whole.best))


def test_a_fit_that_gets_sigterm_goes_on_to_the_same_bits(tmp_path):
    training = edge_popup.Training(SCHEDULE.steps, SCHEDULE.optimizer(0.05), evaluate_every=8)
    options = {"keep": 0.5, "training": training}
    params = {**draw(KEY), "bias": jnp.zeros(2)}

    def interrupted(step):
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch(step)

    [whole] = edge_popup.fit(KEY, params, loss, batch, **options)
    with pytest.raises(SystemExit):
        edge_popup.fit(KEY, params, loss, interrupted, out=tmp_path, **options)
    assert (tmp_path / "checkpoints" / "step-00000005").is_dir()
    [again] = edge_popup.fit(KEY, params, loss, batch, out=tmp_path, **options)
    assert again.log == whole.log
    same((again.masks, again.ticket), (whole.masks, whole.ticket))


def test_a_loss_that_is_not_finite_names_step_and_run(runs):
    hot = dataclasses.replace(runs, batches=lambda begin, end: jax.tree.map(
        lambda x: np.where(np.arange(2).reshape(2, 1, 1, 1) == 1, np.nan, x).astype(np.float32),
        runs.batches(begin, end),
    ))  # fmt: skip
    message = r"^training loss must be finite, got nan at step 1 of run 1$"
    with refusals(message):
        edge_popup.train(hot, evaluate_every=2)
    with refusals(r"^evaluate_first must be False without validation"):
        edge_popup.train(
            dataclasses.replace(runs, validation=()), evaluate_every=2, evaluate_first=True
        )


def test_what_does_not_go_together_is_refused(runs):
    with refusals(r"^draw must be a function of a key for a variant that"):
        dataclasses.replace(runs, draw=None)
    mesh = jax.make_mesh((8,), ("run",))
    with refusals(r"^mesh must be given together with shapes"):
        edge_popup.Program(runs.program.task, 2, mesh=mesh)


@pytest.mark.slow
def test_runs_in_groups_are_the_runs_together(runs):
    grouped = edge_popup.Program(runs.program.task, 2, together=1)
    together = edge_popup.train(runs, evaluate_every=4)
    alone = edge_popup.train(dataclasses.replace(runs, program=grouped), evaluate_every=4)
    for ours, theirs in zip(alone.log, together.log, strict=True):
        np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-3)
    with refusals(r"^together must be a divisor of 3 runs, without a mesh, got 2$"):
        edge_popup.Program(runs.program.task, 3, together=2)
