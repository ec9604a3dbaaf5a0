"""`fit` with optimisers, keys, dtypes and arguments of all kinds; bad arguments are named."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from refusals import refusals

from slth_jax import edge_popup, storage, supermask
from slth_jax.edge_popup import Masking, Stateful, Training, Variant

KEY = jax.random.key(5, impl="threefry2x32")
TARGET = jax.random.normal(jax.random.fold_in(KEY, 1), (6, 3))
ADAM = optax.adam(0.01)
RATES = optax.inject_hyperparams(optax.adam)(learning_rate=0.01)
TRAINING = Training(6, ADAM, evaluate_every=2)


def batch(step):
    x = jax.random.normal(jax.random.fold_in(KEY, 10 + step), (16, 6))
    return x, x @ TARGET


def draw(key):
    a, b = jax.random.split(key)
    first = {"kernel": jax.random.normal(a, (6, 8)), "bias": jnp.zeros(8)}
    return {"first": first, "second": {"kernel": jax.random.normal(b, (8, 3))}}


def loss(params, rows):
    hidden = jax.nn.relu(rows[0] @ params["first"]["kernel"] + params["first"]["bias"][None])
    return jnp.mean((hidden @ params["second"]["kernel"] - rows[1]) ** 2)


def fit(**changes):
    arguments = {"params": draw, "loss": loss, "batches": batch, "training": TRAINING, "keep": 0.4}
    return edge_popup.fit(**({"key": KEY} | arguments | changes))


def stopped_and_resumed(out, training, **changes):
    """Return the results of a fit that was stopped after four steps."""

    def stop(step, steps, entry):
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(training=dataclasses.replace(training, progress=stop), out=out, **changes)
    return fit(training=training, out=out, **changes)


def plain(tree):
    """Return the leaves; random keys as their data."""
    is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)  # noqa: E731
    return [jax.random.key_data(x) if is_key(x) else x for x in jax.tree.leaves(tree)]


def same(left, right):
    for a, b in zip(left, right, strict=True):
        assert a.log == b.log
        for x, y in zip(plain((a.masks, a.ticket)), plain((b.masks, b.ticket)), strict=True):
            np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.chain(ADAM, optax.contrib.reduce_on_plateau()),  # reads the loss
        pytest.param(optax.polyak_sgd(0.1), marks=pytest.mark.slow),
        pytest.param(optax.lbfgs(0.1), marks=pytest.mark.slow),  # evaluates the loss
        pytest.param(optax.MultiSteps(ADAM, 2).gradient_transformation(), marks=pytest.mark.slow),
        pytest.param(optax.adafactor(0.01, min_dim_size_to_factor=4), marks=pytest.mark.slow),
        pytest.param(optax.add_noise(0.1, 0.5, KEY), marks=pytest.mark.slow),  # draws from a key
    ],
    ids=["plateau", "polyak", "lbfgs", "every second step", "adafactor", "noise"],
)
def test_any_optimiser_trains_and_goes_on_to_the_same_bits(optimizer, tmp_path):
    training = dataclasses.replace(TRAINING, optimizer=optimizer)
    whole = fit(training=training)
    assert whole[0].log[0]["loss"] != whole[0].log[-1]["loss"]
    same(whole, stopped_and_resumed(tmp_path, training))


@pytest.mark.slow
def test_random_keys_in_the_state_of_a_tree_go_on(tmp_path):
    def noisy(params, state, rows, key):
        noise = 0.1 * jax.random.normal(state["key"], rows[0].shape)
        after = {"key": jax.random.split(state["key"], 1)[0]}
        return loss(params, (rows[0] + noise, rows[1])), after

    measured = dataclasses.replace(
        TRAINING, validation=[batch(50)], evaluate=lambda params, state, rows: loss(params, rows)
    )
    model = {"params": Stateful(draw(KEY), {"key": KEY}), "loss": noisy}
    whole = fit(training=measured, **model)
    same(whole, stopped_and_resumed(tmp_path, measured, **model))
    after = whole[0].ticket.state["key"]
    assert after.dtype == KEY.dtype and not np.array_equal(*map(jax.random.key_data, (after, KEY)))


@pytest.mark.slow
def test_float16_weights_train_beside_controls_in_their_dtype():
    """Adam divides by 1e-8, which is 0 in float16: moving arrays are float32, the model is not."""
    half = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float16), tree)  # noqa: E731

    def typed(params, rows):
        assert {x.dtype for x in jax.tree.leaves((params, rows))} == {jnp.dtype(jnp.float16)}
        dead = jnp.sum(params["second"]["kernel"][0]) * 0  # a gradient of zeros
        return (loss(params, rows) + dead).astype(jnp.float32)

    fits = fit(
        params=lambda key: half(draw(key)),
        loss=typed,
        batches=lambda step: half(batch(step)),
        controls=("dense", "random"),
        masking=Masking(learn=lambda name, x: name.endswith("bias")),
    )
    source = half(draw(KEY))
    for result in fits:
        assert {x.dtype for x in jax.tree.leaves(result.ticket)} == {jnp.dtype(jnp.float16)}
    mask = np.asarray(fits[0].masks["second"]["kernel"])
    np.testing.assert_array_equal(
        fits[0].ticket["second"]["kernel"], source["second"]["kernel"] * mask
    )


def test_fractions_and_rates_of_arrays_count_as_they_print():
    """The float32 nearest to 0.29 is below it: of 50 connections 15 are kept, not 14."""
    params = {"w": jax.random.normal(KEY, (50, 1))}
    short = Training(1, RATES, sweep={"learning_rate": np.array([0.01, 0.1])})
    arguments = {
        "params": params,
        "loss": lambda params, x: jnp.mean((x @ params["w"]) ** 2),
        "batches": lambda step: jnp.ones((2, 50)),
        "training": short,
    }
    fits = fit(**arguments, keep=np.array([0.29, 0.5], np.float32))
    kept = [int(result.masks["w"].sum()) for result in fits]
    assert kept == [supermask.num_kept(50, keep) for keep in (0.29, 0.29, 0.5, 0.5)]
    alone = fit(**arguments, keep=np.float32(0.29))
    assert alone[0].masks["w"].sum() == supermask.num_kept(50, np.float32(0.29)) == 15


@jax.custom_vjp
def bent(x):
    return x


bent.defvjp(lambda x: (x, None), lambda _, g: (2.0 * g,))


def test_other_gradients_and_later_batches_are_another_fit(tmp_path):
    short = Training(2, ADAM)

    def straight(params, rows):
        return loss(params, rows)

    fit(training=short, loss=straight, out=tmp_path)
    for field, changes in (
        ("loss", {"loss": lambda params, rows: bent(loss(params, rows))}),
        ("batches", {"batches": lambda step: batch(step * 2)}),
    ):
        with pytest.raises(storage.CheckpointError, match=f"another fit: {field} is"):
            fit(**({"training": short, "out": tmp_path} | changes))
    generator = np.random.default_rng(0)
    with refusals("^batches must be a function that returns the same batch whenever it gets a st"):
        fit(batches=lambda step: generator.normal(size=(2, 16, 6)), out=tmp_path / "other",
            loss=lambda params, x: loss(params, (x[0], x[1][:, :3])))  # fmt: skip


def measured(evaluate):
    return {"training": dataclasses.replace(TRAINING, validation=[batch(9)], evaluate=evaluate)}


def sparse(**fields):
    return {"masking": Masking(Variant(**fields))}


REFUSED = [
    ({"key": jax.random.split(KEY)}, "key must be a typed key"),
    ({"keep": "0.5"}, r"keep must be a number in \(0, 1\], got '0.5'"),
    ({"keep": [0.5, 0.2, 0.5]}, "keep must be different values, at least one, got"),
    ({"controls": ["dense", "dense"]}, "controls must be different values"),
    ({"out": 3}, "out must be str or PathLike, got int 3"),
    ({"batches": lambda step: None}, r"batches\(0\) must be a tree of arrays, got None"),
    ({"batches": lambda step: {"text": "a"}}, r"batches\(0\) must be a tree of arrays, got 'a'"),
    ({"params": {"w": "text"}}, r"params\['w'\] must be an array of numbers, got 'text'"),
    (
        {"params": lambda key: {"w": jnp.ones((int(jax.random.key_data(key)[1]) % 5 + 2, 2))},
         "seeds": 3},
        r"params must be a function that draws equal shapes: 'w' of float32\[",
    ),
    (
        {"loss": lambda params, rows: jnp.ones(3)},
        r"loss must be a function that returns a floating-point scalar, got float32\[3\]",
    ),
    ({"loss": lambda params, rows: (loss(params, rows), {})}, "loss must be .* scalar, got tuple"),
    ({"loss": lambda params, rows: None}, "loss must be .* scalar, got NoneType"),
    ({"masking": Masking(fan_in={"third": 3})}, "fan_in must be a dictionary by names in"),
    (measured(lambda params, rows: {"accuracy": 1.0}), "evaluate must be a function whose dict"),
    (
        measured(lambda params, rows: {"loss": 0.0, "right": jnp.ones(3)}),
        r"evaluate's measurement 'right' must be a number, got float32 of shape \(3,\)",
    ),
    (
        measured(lambda params, rows: {"loss": 0.0, "name": "good"}),
        "evaluate's measurement 'name' must be a number, got 'good'",
    ),
    (measured(lambda params, rows: None), "evaluate's measurement 'loss' must be .* got None"),
    (
        measured(lambda params, rows: {"loss": 0.0, "step": 1}),
        "names of evaluate's measurements must be none of .*, got 'step'",
    ),
    (
        sparse(masks=lambda key, scores, weights, keep: jax.nn.sigmoid(scores)),
        r"masks must be a function that returns .*bool\[6, 8\].*, got .*float32\[6, 8\]",
    ),
    (
        {"params": Stateful(draw(KEY), {"n": 0}),
         "loss": lambda params, state, rows, key: (loss(params, rows), {"n": 0.5})},
        r"loss must be a function whose next state has 'n' of int32\[\], got float32\[\]",
    ),
    (
        {"params": Stateful(draw(KEY), {"n": 0}),
         "loss": lambda params, state, rows, key: loss(params, rows)},
        r"loss must be a function that returns \(loss, state\), got float32",
    ),
    (
        {"training": Training(2, optax.inject_hyperparams(optax.adam)(
            learning_rate=optax.constant_schedule(0.1)), {"learning_rate": [0.1, 0.2]})},
        "sweep must be names of hyperparameters that no schedule sets at every step, got 'learn",
    ),
    (
        {"training": Training(2, ADAM, {"count": [1, 2]})},
        r"sweep must be names of hyperparameters .*inject_hyperparams\), got 'count'",
    ),
]  # fmt: skip


@pytest.mark.parametrize("changes, words", REFUSED, ids=[words[:40] for _, words in REFUSED])
def test_arguments_that_cannot_be_used_are_named(changes, words):
    with refusals(words):
        fit(**changes)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"optimizer": 0.1}, "optimizer must be an optimiser of Optax, .* got 0.1"),
        ({"optimizer": optax.adam}, "optimizer must be an optimiser of Optax"),
        ({"sweep": ["learning_rate"]}, "sweep must be Mapping, got list"),
        ({"sweep": {"b1": []}}, r"sweep\['b1'\] must be different values, at least one, got \[\]"),
        ({"sweep": {"b1": 0.1}}, r"sweep\['b1'\] must be a list or tuple, got float 0.1"),
        ({"sweep": {"b1": ["a"]}}, r"sweep\['b1'\] must be a number .*, got 'a'"),
        ({"validation": batch}, "validation must be a list or tuple, got function"),
        ({"evaluate": loss}, "evaluate must be None without validation batches"),
        ({"evaluate": "accuracy"}, "evaluate must be a function, got str 'accuracy'"),
        ({"progress": "rich"}, "progress must be a function, got str 'rich'"),
        ({"mesh": 3}, "mesh must be Mesh or NoneType, got int 3"),
    ],
)
def test_trainings_that_cannot_be_used_are_named(changes, words):
    with refusals(words):
        dataclasses.replace(TRAINING, **changes)


@pytest.mark.parametrize("name", ["masks", "through", "init", "keep_at"])
def test_parts_of_a_variant_are_functions(name):
    with refusals(f"{name} must be a function, got float 0.5"):
        Variant(**{name: 0.5})
