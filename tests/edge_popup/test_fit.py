"""`fit` on models of any kind: dictionaries, tuples, Linen's variables, NNX modules, state."""

import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from refusals import refusals

from slth_jax import edge_popup, storage, supermask
from slth_jax.edge_popup import Masking, Schedule, Stateful, Training

KEY = jax.random.key(3, impl="threefry2x32")
SCHEDULE = Schedule(steps=30, warmup=3, weight_decay=0.0)
TEACHER = jax.random.normal(jax.random.fold_in(KEY, 9), (4, 2))
TRAINING = Training(steps=30, optimizer=SCHEDULE.optimizer(0.05), evaluate_every=10)
OPTIONS = {"keep": 0.4, "training": TRAINING}


def batch(step):
    x = jax.random.normal(jax.random.fold_in(KEY, step), (32, 4))
    return x, x @ TEACHER


def draw(key):
    a, b = jax.random.split(key)
    return {
        "first": {"kernel": jax.random.normal(a, (4, 24)), "bias": jnp.full((24,), 0.1)},
        "second": {"kernel": jax.random.normal(b, (24, 2)) * 0.3},
    }


def squared(forward):
    def loss(params, rows):
        x, y = rows
        return jnp.mean((forward(params, x) - y) ** 2)

    return loss


def nested(params, x):
    hidden = jax.nn.relu(x @ params["first"]["kernel"] + params["first"]["bias"][None])
    return hidden @ params["second"]["kernel"]


LOSS = squared(nested)


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(2)(jax.nn.relu(linen.Dense(24)(x)))


class Module(nnx.Module):
    """Batch statistics, dropout, and biases of two dimensions (of the attention)."""

    def __init__(self, rngs):
        self.first = nnx.Linear(4, 24, rngs=rngs)
        self.norm = nnx.BatchNorm(24, momentum=0.5, rngs=rngs)
        self.drop = nnx.Dropout(0.1, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 24, rngs=rngs, decode=False)
        self.second = nnx.Linear(24, 2, rngs=rngs)

    def __call__(self, x):
        hidden = self.drop(nnx.relu(self.norm(self.first(x))))
        return self.second(hidden + self.attention(hidden[:, None])[:, 0])


def module_loss(module, rows):
    x, y = rows
    return jnp.mean((module(x) - y) ** 2)


def trees():
    source = draw(KEY)
    pair = (source["first"]["kernel"], source["second"]["kernel"])
    return {
        "dictionaries": (source, LOSS),
        "tuple": (pair, squared(lambda p, x: jax.nn.relu(x @ p[0]) @ p[1])),
        "linen": (Linen().init(KEY, jnp.zeros((1, 4))), squared(Linen().apply)),
    }


def same(left, right):
    for a, b in zip(*map(jax.tree.leaves, (left, right)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ["dictionaries", "tuple", "linen"])
def test_any_tree_is_fitted_and_its_weights_stay(name):
    params, loss = trees()[name]
    before = jax.tree.map(np.array, params)
    [result] = edge_popup.fit(KEY, params, loss, batch, **OPTIONS)
    assert [entry["step"] for entry in result.log] == [10, 20, 30]
    assert result.log[-1]["loss"] < result.log[0]["loss"]
    assert jax.tree.structure(result.ticket) == jax.tree.structure(params)
    masks = storage.named_leaves(result.masks)
    for place, mask in masks.items():
        assert mask.sum() == supermask.num_kept(mask.size, 0.4), place
    for place, weight in storage.named_leaves(before).items():
        kept = np.asarray(storage.named_leaves(result.ticket)[place])
        mask = masks.get(place)
        if mask is None:  # biases are left alone
            assert weight.ndim < 2
            np.testing.assert_array_equal(kept, weight)
        else:
            np.testing.assert_array_equal(kept, weight * np.asarray(mask))
    assert "connections kept" in repr(result)
    same(params, before)


@pytest.mark.slow
def test_a_module_keeps_its_state_and_evaluates_without_dropout():
    def evaluate(module, rows):
        return {"loss": module_loss(module, rows), "rng": module.drop.rngs.count[...]}

    training = dataclasses.replace(TRAINING, validation=[batch(99)], evaluate=evaluate)
    module = Module(nnx.Rngs(0))
    count = int(module.drop.rngs.count[...])
    [result] = edge_popup.fit(KEY, module, module_loss, batch, keep=0.4, training=training)
    assert result.log[-1]["validation"] < result.log[0]["validation"]
    assert [entry["rng"] - count for entry in result.log] == [10, 20, 30], "dropout's keys go on"
    ticket = result.ticket
    assert isinstance(ticket, Module)
    x = jax.random.normal(KEY, (512, 4))
    hidden = ticket.first(x)
    np.testing.assert_allclose(ticket.norm.mean[...], hidden.mean(axis=0), atol=0.2)
    assert float(jnp.max(jnp.abs(ticket.norm.mean[...]))) > 0.1, "statistics were updated"
    ticket.eval()
    assert float(module_loss(ticket, batch(99))) == pytest.approx(result.best_loss, rel=1e-5)
    assert sorted(storage.named_leaves(result.masks)) == sorted(
        f"{layer}.kernel"
        for layer in (
            "first",
            "second",
            *(f"attention.{n}" for n in ("query", "key", "value", "out")),
        )
    ), "biases of two dimensions are no matrices"


def test_arrays_of_a_module_that_are_no_variables_are_state():
    class Counting(nnx.Module):
        def __init__(self, rngs):
            self.scale, self.calls = np.full((1, 4), 0.5, np.float32), jnp.zeros(())
            self.out = nnx.WeightNorm(nnx.Linear(4, 2, rngs=rngs), rngs=rngs)

        def __call__(self, x):
            self.calls = self.calls + 1
            return self.out(x * self.scale)

    training = dataclasses.replace(TRAINING, steps=3)
    module = Counting(nnx.Rngs(0))
    [result] = edge_popup.fit(KEY, module, module_loss, batch, keep=0.4, training=training)
    assert list(storage.named_leaves(result.masks)) == ["out.layer_instance.kernel"]
    assert float(result.ticket.calls) == 3 and float(module.calls) == 0


def test_state_that_nobody_updates_is_refused():
    graph, params = nnx.split(Module(nnx.Rngs(0)))
    loss = squared(lambda p, x: nnx.merge(graph, p)(x))
    with refusals(r"^params must be without state .*, got BatchStat, PRNG keys, RngCount, RngKey$"):
        edge_popup.fit(KEY, params, loss, batch, **OPTIONS)
    with refusals(r"^params must be without state .* got batch_stats$"):
        variables = {"params": draw(KEY), "batch_stats": {"mean": jnp.zeros(3)}}
        edge_popup.fit(KEY, variables, lambda p, rows: LOSS(p["params"], rows), batch, **OPTIONS)
    with refusals(r"^key must be a typed key, jax.random.key\(seed\), got dtype uint32"):
        edge_popup.fit(jax.random.PRNGKey(0), draw(KEY), LOSS, batch, **OPTIONS)


def test_state_in_a_tree_goes_on_with_keys_of_its_own(tmp_path):
    """A running mean and noise: a resumed fit must have both as the undisturbed one."""

    def loss(params, state, rows, key):
        x, y = rows
        noise = 0.1 * jax.random.normal(key, x.shape)
        mean = 0.9 * state["mean"] + 0.1 * jnp.mean(x + noise)
        return jnp.mean((nested(params, x + noise - mean) - y) ** 2), {"mean": mean}

    def evaluate(params, state, rows):
        return jnp.mean((nested(params, rows[0] - state["mean"]) - rows[1]) ** 2)

    model = Stateful(draw(KEY), {"mean": jnp.float32(0.0)})
    training = dataclasses.replace(TRAINING, validation=[batch(99)], evaluate=evaluate)
    whole = edge_popup.fit(KEY, model, loss, batch, keep=0.4, training=training)

    def stop(step, steps, entry):
        if step == 20:
            raise KeyboardInterrupt

    stopping = dataclasses.replace(training, progress=stop)
    with pytest.raises(KeyboardInterrupt):
        edge_popup.fit(KEY, model, loss, batch, keep=0.4, training=stopping, out=tmp_path)
    again = edge_popup.fit(KEY, model, loss, batch, keep=0.4, training=training, out=tmp_path)
    same((whole[0].masks, whole[0].ticket), (again[0].masks, again[0].ticket))
    assert float(whole[0].ticket.state["mean"]) != 0
    with refusals("^evaluate must be a function for a model with mutable state, got None"):
        unmeasured = dataclasses.replace(training, evaluate=None)
        edge_popup.fit(KEY, model, loss, batch, keep=0.4, training=unmeasured)


@pytest.mark.slow
def test_many_runs_are_fits_of_their_own_and_a_table():
    training = dataclasses.replace(
        TRAINING, sweep={"learning_rate": [0.02, 0.05]}, validation=[batch(99)]
    )
    fits = edge_popup.fit(
        KEY, draw, LOSS, batch, keep=[0.2, 0.5], seeds=2, controls=("dense", "random"),
        training=training,
    )  # fmt: skip
    assert len(fits) == 2 * 2 * 5 and len(fits.rows()) == 20
    settings = [(s.method, s.keep, s.hyperparameters["learning_rate"]) for s in
                (fit.setting for fit in fits[::2])]  # fmt: skip
    rates = (0.02, 0.05)
    assert settings == [
        *(("edge-popup", keep, rate) for keep in (0.2, 0.5) for rate in rates),
        *(("dense", 1.0, rate) for rate in rates),
        *(("random", keep, rate) for keep in (0.2, 0.5) for rate in rates),
    ]
    sources = [draw(jax.random.fold_in(KEY, seed)) for seed in range(2)]
    for fit in fits:
        source = sources[fit.setting.seed]
        moved = (fit.ticket["first"]["bias"] != source["first"]["bias"]).any()
        assert bool(moved) == (fit.setting.method != "edge-popup"), "controls train everything"
        for layer in ("first", "second"):
            mask = np.asarray(fit.masks[layer]["kernel"])
            assert mask.sum() == supermask.num_kept(mask.size, fit.setting.keep)
            weights = np.asarray(fit.ticket[layer]["kernel"])
            assert np.all((weights != 0) <= mask)
            if fit.setting.method == "edge-popup":
                np.testing.assert_array_equal(weights, source[layer]["kernel"] * mask)
        assert fit.log[-1]["validation"] < 1.02 * fit.log[0]["validation"]
        best = fit.ticket
        assert float(LOSS(best, batch(99))) == pytest.approx(fit.best_loss, rel=1e-4)
    random = [fit for fit in fits if fit.setting.method == "random"]
    same(random[0].masks, random[2].masks)  # a seed's random mask, whatever the learning rate
    lone = dataclasses.replace(training, optimizer=SCHEDULE.optimizer(0.05), sweep={})
    [alone] = edge_popup.fit(jax.random.fold_in(KEY, 1), draw, LOSS, batch, keep=0.5, training=lone)
    [mine] = [f for f in fits if str(f.setting) ==
              "the edge-popup run with keep 0.5, learning_rate 0.05, seed 1"]  # fmt: skip
    assert mine.best_loss == pytest.approx(alone.best_loss, rel=1e-3)
    table = fits.table()
    assert [row["count"] for row in table] == [2] * 10
    assert table[0]["loss"][0] == pytest.approx(np.mean([f.best_loss for f in fits[:2]]))
    assert repr(fits).splitlines()[0].split() == [
        "method", "keep", "learning_rate", "count", "loss", "step"
    ]  # fmt: skip


@pytest.mark.slow
def test_fractions_by_name_and_a_convolution_ranked_whole():
    params = {"conv": {"kernel": jax.random.normal(KEY, (3, 3, 1, 8))},
              "out": {"kernel": jax.random.normal(KEY, (8, 2))}}  # fmt: skip

    def loss(params, rows):
        x = rows[0].reshape(-1, 4, 8, 4).sum(-1)[..., None][:, :, :, :]
        x = jax.lax.conv_general_dilated(
            x, params["conv"]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.mean((x.mean((1, 2)) @ params["out"]["kernel"]) ** 2)

    def images(step):
        return (jax.random.normal(jax.random.fold_in(KEY, step), (4, 32 * 4)),)

    short = Training(2, optax.sgd(0.1))
    keeps = [{"conv": 0.25, "out.kernel": 0.5}, 0.5]
    fits = edge_popup.fit(KEY, params, loss, images, keep=keeps, training=short)
    kept = [
        (int(f.masks["conv"]["kernel"].sum()), int(f.masks["out"]["kernel"].sum())) for f in fits
    ]
    assert kept == [(18, 8), (36, 8)]
    per_tap = fits[0].masks["conv"]["kernel"].sum((2, 3))
    assert len(np.unique(per_tap)) > 1, "taps of a kernel are ranked together"
    with refusals(
        r"^keep must be a dictionary with one entry for 'out.kernel', got entries \['conv'\]"
    ):
        edge_popup.fit(KEY, params, loss, images, keep={"conv": 0.5}, training=short)
    with refusals(r"^keep must be a dictionary by names in .*, got 'dense'"):
        edge_popup.fit(
            KEY, params, loss, images, keep={"conv": 0.5, "out": 1.0, "dense": 1.0}, training=short
        )


def test_first_scores_take_the_fan_in_of_the_whole_kernel():
    arrays = {"conv": jnp.zeros((3, 3, 64, 8))}
    scores = edge_popup.init_scores(KEY, arrays, edge_popup.VARIANTS["ramanujan"])["conv"]
    bound = (9 * 64) ** -0.5
    assert 0.99 * bound < float(jnp.max(jnp.abs(scores))) <= bound


def test_a_stopped_fit_goes_on_to_the_same_bits_and_another_is_refused(tmp_path):
    iterand = Masking(edge_popup.Variant(redraw_every=7, redraw_rate=0.5))
    training = dataclasses.replace(TRAINING, validation=[batch(99)])
    options = {"keep": 0.4, "masking": iterand}
    alone = edge_popup.fit(KEY, draw, LOSS, batch, training=training, **options)
    calls = []

    def stop(step, steps, entry):
        calls.append((step, steps))
        if step == 20:
            raise KeyboardInterrupt

    stopping = dataclasses.replace(training, progress=stop)
    with pytest.raises(KeyboardInterrupt):
        edge_popup.fit(KEY, draw, LOSS, batch, out=tmp_path, training=stopping, **options)
    asked = set()

    def counted(step):
        asked.add(step)
        return batch(step)

    again = edge_popup.fit(KEY, draw, LOSS, counted, out=tmp_path, training=training, **options)
    assert calls == [(10, 30), (20, 30)] and asked - {0} == set(range(20, 30))
    assert again[0].log == alone[0].log and again[0].best_step == alone[0].best_step
    same((again[0].masks, again[0].ticket), (alone[0].masks, alone[0].ticket))

    def other(field, **changes):
        arguments = {"params": draw, "loss": LOSS, "batches": batch, "training": training}
        with pytest.raises(storage.CheckpointError, match=f"another fit: {field} is"):
            edge_popup.fit(KEY, **(arguments | options | {"out": tmp_path} | changes))

    def faster(rate):
        return dataclasses.replace(training, optimizer=SCHEDULE.optimizer(rate))

    other(r"runs\[0\].keep", keep=0.5)
    other("params", params=lambda key: draw(jax.random.fold_in(key, 1)))
    other("loss", loss=lambda params, rows: 2 * LOSS(params, rows))
    other("optimizer", training=faster(0.04))
    other("optimizer", training=dataclasses.replace(training, optimizer=optax.lion(1e-3)))
    other("variant", masking=Masking(edge_popup.Variant(
        masks=lambda key, scores, weights, keep: supermask.from_tree(scores * weights, keep),
        redraw_every=7, redraw_rate=0.5,
    )))  # fmt: skip
    other("batches", batches=lambda step: batch(step + 1))
    other("validation", training=dataclasses.replace(training, validation=[batch(98)]))


SCRIPT = """
import jax, jax.numpy as jnp, optax
from slth_jax import edge_popup
key = jax.random.key(0)
data = jax.random.normal(key, (8, 3))
[result] = edge_popup.fit(
    key, {"w": jax.random.normal(key, (3, 2))},
    lambda params, x: jnp.mean(jax.nn.relu(x @ params["w"]) ** 2) + data.sum(), lambda step: data,
    training=edge_popup.Training(2, optax.lion(1e-2)), out=__import__("sys").argv[1],
)
print(result.best_loss)
"""


@pytest.mark.slow
def test_another_process_sees_the_same_fit(tmp_path):
    """Fingerprints of programs do not depend on addresses in memory."""
    runs = [
        subprocess.run(
            [sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True
        )
        for _ in range(2)
    ]
    assert runs[0].stdout == runs[1].stdout != "", runs[1].stderr


def test_parts_to_mask_and_to_learn_are_the_users_choice():
    params = draw(KEY)
    masking = Masking(
        mask=lambda name, x: name == "second.kernel", learn=lambda name, x: name.endswith("bias")
    )
    x, y = batch(99)
    # Validation against negated targets gets worse in the end: the last is not the best.
    training = dataclasses.replace(TRAINING, validation=[(x, -y)])
    [result] = edge_popup.fit(
        KEY, params, LOSS, batch, masking=masking, keep=0.4, training=training
    )
    assert list(storage.named_leaves(result.masks)) == ["second.kernel"]
    assert (result.ticket["first"]["bias"] != params["first"]["bias"]).any()
    np.testing.assert_array_equal(result.ticket["first"]["kernel"], params["first"]["kernel"])
    assert result.best_step < 30 and result.log[-1]["validation"] > result.best_loss
    assert float(LOSS(result.ticket, (x, -y))) == pytest.approx(result.best_loss, rel=1e-5)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"keep": 0.0}, r"keep must be a number in \(0, 1\], got 0.0"),
        ({"masking": Masking("best")}, "variant must be one of 'ramanujan'"),
        ({"controls": ["sparse"]}, "controls must be one of 'dense', 'random', got 'sparse'"),
        (
            {"masking": Masking(mask=lambda name, x: False)},
            "params must be a tree with at least one array to mask",
        ),
        (
            {"masking": Masking(mask=lambda name, x: True)},
            "mask of 'first.bias' must be of an array of two",
        ),
        ({"masking": Masking("iterand")}, "draw must be a function of a key for a variant"),
        (
            {"training": dataclasses.replace(TRAINING, sweep={"momentum": [0.9]})},
            r"sweep must be names of hyperparameters .* got 'momentum'",
        ),
    ],
)
def test_bad_input_is_named(changes, words):
    with refusals(words):
        edge_popup.fit(KEY, draw(KEY), LOSS, batch, **{**OPTIONS, **changes})


def test_a_gradient_that_is_not_finite_names_the_step():
    def loss(params, rows):
        # A finite loss whose gradient is 0 times infinity.
        return LOSS(params, rows) + jnp.sqrt(jnp.sum(params["first"]["kernel"] * 0.0))

    with refusals("^gradient norm must be finite, got nan at step 1 of the edge-popup run"):
        edge_popup.fit(KEY, draw(KEY), loss, batch, **OPTIONS)


def test_float16_weights_do_not_keep_the_connections_of_dead_inputs():
    """Adam's 1e-8 is 0 in float16: scores without gradient became NaN, and ranked first."""
    training = Training(steps=20, optimizer=optax.adam(0.05), evaluate_every=10)
    weights = {"w": jax.random.normal(KEY, (8, 4), jnp.float16)}
    alive = (jnp.arange(8) >= 4)[None]  # the first four inputs are always 0
    teacher = jax.random.normal(jax.random.fold_in(KEY, 5), (8, 4))

    def rows(step):
        x = jnp.where(alive, jax.random.normal(jax.random.fold_in(KEY, step), (32, 8)), 0)
        return x.astype(jnp.float16), (x @ teacher).astype(jnp.float16)

    def loss(params, batch):
        x, y = batch
        return jnp.mean((x @ params["w"] - y).astype(jnp.float32) ** 2)

    [result] = edge_popup.fit(KEY, weights, loss, rows, keep=0.5, training=training)
    kept = np.asarray(result.masks["w"])
    assert kept.sum() == 16 and kept[4:].any() and result.ticket["w"].dtype == jnp.float16


def test_known_nan_scores_are_refused_and_traced_ones_rank_first():
    scores = jnp.array([0.5, jnp.nan, 3.0, 1.0])
    with refusals("scores must be free of NaN, got 1 NaN of 4 entries"):
        supermask.from_scores(scores, 0.5)
    traced = jax.jit(lambda s: supermask.from_scores(s, 0.5))(scores)
    np.testing.assert_array_equal(traced, [False, True, True, False])
