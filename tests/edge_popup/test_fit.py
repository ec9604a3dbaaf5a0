"""The whole loop on models of any kind: nested dictionaries, tuples, Flax NNX, linen variables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from refusals import refusals

from slth_jax import edge_popup, storage, supermask

KEY = jax.random.key(3, impl="threefry2x32")
RECIPE = edge_popup.Recipe(steps=30, warmup=3, weight_decay=0.0)
TEACHER = jax.random.normal(jax.random.fold_in(KEY, 9), (4, 2))
OPTIONS = {"keep": 0.4, "recipe": RECIPE, "learning_rate": 0.05, "evaluate_every": 10}


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


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(2)(jax.nn.relu(linen.Dense(24)(x)))


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.a = nnx.Linear(4, 24, rngs=rngs)
        self.b = nnx.Linear(24, 2, rngs=rngs)

    def __call__(self, x):
        return self.b(jax.nn.relu(self.a(x)))


class Dropping(nnx.Module):
    """Its state has random keys and a counter among the weights."""

    def __init__(self, rngs):
        self.a = nnx.Linear(4, 24, rngs=rngs)
        self.drop = nnx.Dropout(0.1, rngs=rngs)
        self.b = nnx.Linear(24, 2, rngs=rngs)

    def __call__(self, x):
        return self.b(self.drop(jax.nn.relu(self.a(x))))


def models():
    source = draw(KEY)
    pair = (source["first"]["kernel"], source["second"]["kernel"])
    variables = Linen().init(KEY, jnp.zeros((1, 4)))
    graph, state = nnx.split(Nnx(nnx.Rngs(0)))
    return {
        "dictionaries": (source, squared(nested)),
        "tuple": (pair, squared(lambda p, x: jax.nn.relu(x @ p[0]) @ p[1])),
        "linen": (variables, squared(Linen().apply)),
        "nnx": (state, squared(lambda p, x: nnx.merge(graph, p)(x))),
    }


@pytest.mark.parametrize("name", ["dictionaries", "tuple", "linen", "nnx"])
def test_any_model_is_fitted_and_its_weights_stay(name):
    params, loss = models()[name]
    before = jax.tree.map(np.array, params)
    found = edge_popup.fit(KEY, params, loss, batch, **OPTIONS)
    assert [entry["step"] for entry in found.log] == [10, 20, 30]
    assert found.log[-1]["loss"] < found.log[0]["loss"]
    assert jax.tree.structure(found.ticket) == jax.tree.structure(params)
    masks = storage.named_leaves(found.masks)
    for place, mask in masks.items():
        assert mask.sum() == supermask.num_kept(mask.size, 0.4), place
    for place, weight in storage.named_leaves(before).items():
        kept = np.asarray(storage.named_leaves(found.ticket)[place])
        mask = masks.get(place)
        if mask is None:  # biases are left alone
            assert weight.ndim < 2
            np.testing.assert_array_equal(kept, weight)
        else:
            np.testing.assert_array_equal(kept, weight * np.asarray(mask))
    assert "connections kept" in repr(found)


def test_a_stopped_fit_goes_on_to_the_same_bits(tmp_path):
    params, loss = models()["dictionaries"]
    options = {**OPTIONS, "validation": [batch(99)], "variant": "iterand"}
    iterand = edge_popup.Variant(redraw_every=7, redraw_rate=0.5)
    options |= {"variant": iterand, "draw": draw}
    alone = edge_popup.fit(KEY, params, loss, batch, **options)
    seen = []

    def stop(step, steps, entry):
        seen.append((step, steps))
        if step == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        edge_popup.fit(KEY, params, loss, batch, out=tmp_path, progress=stop, **options)
    asked = []

    def counted(step):
        asked.append(step)
        return batch(step)

    again = edge_popup.fit(KEY, params, loss, counted, out=tmp_path, **options)
    assert seen == [(10, 30), (20, 30)] and asked == list(range(20, 30))
    assert again.log == alone.log and again.best_step == alone.best_step
    for one, other in zip(
        jax.tree.leaves((again.masks, again.ticket)),
        jax.tree.leaves((alone.masks, alone.ticket)),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(storage.CheckpointError, match=r"another fit: keep is 0\.4 there and 0\.5"):
        edge_popup.fit(KEY, params, loss, batch, out=tmp_path, **{**options, "keep": 0.5})


def test_iterand_draws_anew_what_is_not_kept_and_nothing_else():
    params, loss = models()["dictionaries"]
    iterand = edge_popup.Variant(redraw_every=5, redraw_rate=1.0)
    found = edge_popup.fit(KEY, params, loss, batch, variant=iterand, draw=draw, **OPTIONS)
    plain = edge_popup.fit(KEY, params, loss, batch, **OPTIONS)
    weights, ours = (storage.named_leaves(tree) for tree in (params, found.ticket))
    for name, mask in storage.named_leaves(found.masks).items():
        kept = np.asarray(mask)
        changed = kept & (np.asarray(ours[name]) != np.asarray(weights[name]))
        assert 0 < changed.sum() < kept.sum(), "some kept weights were drawn anew before"
    assert found.log[0]["loss"] != plain.log[0]["loss"]
    with refusals("draw must be a function of a key for a variant"):
        edge_popup.fit(KEY, params, loss, batch, variant="iterand", **OPTIONS)


def test_what_is_masked_and_learned_is_the_users_to_say():
    params, loss = models()["dictionaries"]
    found = edge_popup.fit(
        KEY, params, loss, batch,
        mask=lambda name, x: name == "second.kernel", learn=lambda name, x: name.endswith("bias"),
        **OPTIONS,
    )  # fmt: skip
    assert list(storage.named_leaves(found.masks)) == ["second.kernel"]
    assert (found.ticket["first"]["bias"] != params["first"]["bias"]).any()
    np.testing.assert_array_equal(found.ticket["first"]["kernel"], params["first"]["kernel"])


def test_the_ticket_is_that_of_the_best_evaluation_what_learns_included():
    params, loss = models()["dictionaries"]
    # Validation against the answers turned round gets worse in the end: the last is not the best.
    x, y = batch(99)
    found = edge_popup.fit(
        KEY, params, loss, batch, validation=[(x, -y)], learn=lambda name, x: True, **OPTIONS
    )
    assert found.best_step < 30 and found.log[-1]["validation"] > found.best_loss
    assert (found.ticket["first"]["bias"] != params["first"]["bias"]).any()
    assert float(loss(found.ticket, (x, -y))) == pytest.approx(found.best_loss, rel=1e-5)


def test_random_keys_in_a_model_are_left_alone_on_disk_too(tmp_path):
    graph, state = nnx.split(Dropping(nnx.Rngs(0)))
    loss = squared(lambda p, x: nnx.merge(graph, p)(x))
    alone = edge_popup.fit(KEY, state, loss, batch, **OPTIONS)
    on_disk = edge_popup.fit(KEY, state, loss, batch, out=tmp_path, **OPTIONS)
    again = edge_popup.fit(KEY, state, loss, batch, out=tmp_path, **OPTIONS)
    assert jax.tree.structure(alone.ticket) == jax.tree.structure(state)
    for other in (on_disk, again):
        for a, b in zip(*map(jax.tree.leaves, (alone.masks, other.masks)), strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_folder_of_another_source_is_refused(tmp_path):
    params, loss = models()["dictionaries"]
    edge_popup.fit(KEY, params, loss, batch, out=tmp_path, **OPTIONS)
    with pytest.raises(storage.CheckpointError, match="holds another fit: params is"):
        edge_popup.fit(KEY, draw(jax.random.key(8)), loss, batch, out=tmp_path, **OPTIONS)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"keep": 0.0}, r"keep must be a number in \(0, 1\], got 0.0"),
        ({"variant": "best"}, "variant must be one of 'ramanujan'"),
        ({"evaluate_every": 0}, "evaluate_every must be an integer >= 1"),
        ({"mask": lambda name, x: False}, "params must be a tree with at least one array to mask"),
        ({"mask": lambda name, x: True}, "mask of 'first.bias' must be of an array of two"),
    ],
)
def test_bad_input_is_named(changes, words):
    params, loss = models()["dictionaries"]
    with refusals(words):
        edge_popup.fit(KEY, params, loss, batch, **{**OPTIONS, **changes})


def test_known_nan_scores_are_refused_and_traced_ones_rank_first():
    scores = jnp.array([0.5, jnp.nan, 3.0, 1.0])
    with refusals("scores must be free of NaN, got 1 NaN of 4 entries"):
        supermask.from_scores(scores, 0.5)
    traced = jax.jit(lambda s: supermask.from_scores(s, 0.5))(scores)
    np.testing.assert_array_equal(traced, [False, True, True, False])
