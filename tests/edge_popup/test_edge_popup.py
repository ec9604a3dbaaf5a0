import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from refusals import refusals

from experiments.language.model import Model
from slth_jax import edge_popup, models, placement

SETTINGS = models.make_settings(
    num_blocks=2, width=16, num_heads=2, vocab_size=24, max_length=8, activation="relu"
)
MODEL = Model(SETTINGS, models.Initial(sd=0.2))
SCHEDULE = edge_popup.Schedule(steps=20, warmup=2, weight_decay=0.1)
OPTIMIZER = SCHEDULE.optimizer(0.02)
RAMANUJAN = edge_popup.Variant(scope="matrix")
KEY = jax.random.key(0)


def loss(params, tokens):
    return models.loss(params, tokens, SETTINGS)


def start(seed=0, scale=1.0, rate=0.02, variant=RAMANUJAN, model=MODEL):
    return _start(seed, scale, rate, variant=variant, model=model)


@functools.partial(jax.jit, static_argnames=("variant", "model"))
def _start(seed, scale, rate, variant, model):
    weights, trainable = model.start(jax.random.key(seed), variant, scale)
    return edge_popup.start(weights, trainable, SCHEDULE.optimizer(rate))


def moments(state):
    return state.opt_state.inner_state[0].mu


def tokens(seed, rows=8):
    return jax.random.randint(jax.random.key(100 + seed), (rows, 9), 0, 24)


@functools.cache
def make_step(variant=RAMANUJAN, accumulate=1):
    return jax.jit(_step(variant, accumulate))


def _step(variant, accumulate):
    def step(state, batch, keep):
        return edge_popup.step(
            KEY, state, batch, keep,
            loss=loss, optimizer=OPTIMIZER, variant=variant, accumulate=accumulate,
        )  # fmt: skip

    return step


def test_one_step_is_written_out_by_hand():
    """One linear layer, squared error, first step of Adam: the sign of the gradient."""
    weights = {"w": jnp.array([[2.0, -1.0], [0.5, 3.0]])}
    scores = jnp.array([[0.9, -0.8], [0.1, -0.2]])
    optimizer = edge_popup.Schedule(steps=5, weight_decay=0.0).optimizer(0.01)
    state = edge_popup.start(weights, edge_popup.Trainable({"w": scores}, {}), optimizer)
    x, y = jnp.array([[1.0, 2.0]]), jnp.array([[1.0, 1.0]])

    def squared(params, batch):
        return 0.5 * jnp.sum((batch[0] @ params["w"] - batch[1]) ** 2)

    after, metrics = edge_popup.step(
        KEY, state, (x, y), 0.5, loss=squared, optimizer=optimizer, variant=RAMANUJAN
    )
    # Kept: 2 and -1. Output (2, -1), residual (1, -2); dL/dw = x^T residual.
    assert float(metrics["loss"]) == 2.5
    upstream = np.array([[1.0, -2.0], [2.0, -4.0]])
    gradient = upstream * np.asarray(weights["w"]) * np.sign(scores)
    assert float(metrics["grad_norm"]) == pytest.approx(np.linalg.norm(gradient))
    moved = np.asarray(scores) - 0.01 * np.sign(gradient)
    np.testing.assert_allclose(after.trainable.scores["w"], moved, rtol=1e-5)


def test_raw_scores_have_the_plain_gradient():
    weights = {"w": jnp.array([[2.0, -1.0], [0.5, 3.0]])}
    scores = {"w": jnp.array([[0.9, -0.8], [0.1, -0.2]])}
    variant = edge_popup.VARIANTS["raw_score"]

    def total(s):
        params = edge_popup.ticket(None, weights, edge_popup.Trainable(s, {}), 0.5, variant)
        return jnp.sum(params["w"])

    value, gradient = jax.value_and_grad(total)(scores)
    assert value == 2.5  # 0.9 and 0.1 are the largest
    np.testing.assert_array_equal(gradient["w"], weights["w"])


@pytest.mark.slow
def test_accumulation_is_the_whole_batch():
    plain, parts = (make_step(accumulate=n) for n in (1, 4))
    a, metrics_a = plain(start(), tokens(0), 0.3)
    b, metrics_b = parts(start(), tokens(0), 0.3)
    assert float(metrics_a["loss"]) == pytest.approx(float(metrics_b["loss"]), rel=1e-5)
    assert float(metrics_a["grad_norm"]) == pytest.approx(float(metrics_b["grad_norm"]), rel=1e-4)
    chex.assert_trees_all_close(moments(a), moments(b), atol=1e-6)
    with refusals(r"^accumulate must be a divisor of the batch's 8 rows"):
        make_step(accumulate=3)(start(), tokens(0), 0.3)


@pytest.mark.slow
def test_nothing_compiles_after_the_first_step():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(state, batch, keep):
        return _step(RAMANUJAN, 1)(state, batch, keep)

    for seed, scale, keep, rate in ((0, 1.0, 0.3, 0.1), (1, 2.83, 0.5, 0.01), (2, 6.0, 1.0, 1e-4)):
        state = start(seed, scale, rate)
        for index in range(2):
            state, metrics = step(state, tokens(index), keep)
        assert np.isfinite(metrics["loss"])
    assert step._cache_size() == 1


def test_vmap_is_a_loop():
    settings = [(0, 1.0, 0.02), (1, 2.0, 0.01), (0, 3.0, 0.03)]
    runs = [start(*setting) for setting in settings]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *runs)
    batches = jnp.stack([tokens(seed) for seed, _, _ in settings])
    keep = jnp.array([0.3, 0.5, 0.9])
    step = jax.jit(jax.vmap(_step(RAMANUJAN, 1)))
    together, metrics = step(stacked, batches, keep)
    together, _ = step(together, batches, keep)  # the first one of a warm-up moves nothing
    for index, run in enumerate(runs):
        alone, alone_metrics = make_step()(run, batches[index], keep[index])
        assert float(metrics["loss"][index]) == pytest.approx(
            float(alone_metrics["loss"]), rel=1e-5
        )
        alone, _ = make_step()(alone, batches[index], keep[index])
        # Adam divides by the gradient's size, so where that is nothing but rounding it may differ.
        off = together.trainable.scores["wte"][index] - alone.trainable.scores["wte"]
        assert float(jnp.mean(jnp.abs(off) < 1e-4)) > 0.99
        assert not np.array_equal(alone.trainable.scores["wte"], run.trainable.scores["wte"])


@pytest.mark.slow
def test_dense_training_is_ordinary_training():
    params = MODEL.init(jax.random.key(0))
    optimizer = optax.adamw(0.02, weight_decay=0.1)
    state = edge_popup.start({}, edge_popup.Trainable({}, params), optimizer)
    step = functools.partial(edge_popup.step, loss=loss, optimizer=optimizer, variant=RAMANUJAN)
    after, _ = jax.jit(step)(KEY, state, tokens(0), 0.3)

    @jax.jit
    def ordinary(params, batch):
        gradient = jax.grad(loss)(params, batch)
        updates, _ = optimizer.update(gradient, optimizer.init(params), params)
        return optax.apply_updates(params, updates), gradient

    expected, gradient = ordinary(params, tokens(0))
    for name, value in after.trainable.learned.items():
        # Adam's first step is the gradient's sign, which says nothing where that is rounding.
        sure = np.abs(gradient[name]) > 1e-5
        np.testing.assert_allclose(value[sure], expected[name][sure], atol=1e-5)
        assert name == "h.attn.k.bias" or sure.any()


def test_weight_decay_moves_scores_and_matrices_but_no_gains():
    ones = jnp.ones((3, 2))
    learned = {"wte": ones, "norm.gain": jnp.ones(2), "h.norm.gain": ones, "h.attn.bias": ones}
    trainable = edge_popup.Trainable({"w": ones}, learned)
    optimizer = edge_popup.Schedule(steps=5, weight_decay=0.5).optimizer(0.1)
    still = jax.tree.map(jnp.zeros_like, trainable)
    updates, _ = optimizer.update(still, optimizer.init(trainable), trainable)
    np.testing.assert_allclose(updates.scores["w"], -0.05 * ones, rtol=1e-6)
    moved = {name: bool(jnp.any(update != 0)) for name, update in updates.learned.items()}
    assert moved == {"wte": True, "norm.gain": False, "h.norm.gain": False, "h.attn.bias": False}


@pytest.mark.slow
def test_learned_parts_train_beside_the_scores():
    model = dataclasses.replace(MODEL, embeddings="learned", gains="learned")
    state = start(model=model)
    after, _ = make_step()(state, tokens(0), 0.3)
    after, _ = make_step()(after, tokens(1), 0.3)
    moved = [
        name
        for name, value in after.trainable.learned.items()
        if not np.array_equal(value, state.trainable.learned[name])
    ]
    # The bias of the keys shifts all logits of a row alike, so softmax gives it no gradient.
    assert set(moved) | {"h.attn.k.bias"} == set(model.learned)


@pytest.mark.slow
def test_redraw_touches_only_pruned_weights():
    variant = dataclasses.replace(edge_popup.VARIANTS["iterand"], redraw_rate=0.5)
    state = start(variant=variant)
    fresh = MODEL.init(jax.random.key(9))
    after = jax.jit(edge_popup.redraw, static_argnames="variant")(
        jax.random.key(1), state, fresh, 0.3, variant=variant
    )
    kept = edge_popup.masks(None, state.trainable.scores, state.weights, 0.3, variant)
    changed = pruned = 0
    for name, mask in kept.items():
        old, new = np.asarray(state.weights[name]), np.asarray(after.weights[name])
        differs = old != new
        assert not np.any(differs & np.asarray(mask))
        assert np.all(new[differs] == np.asarray(fresh[name])[differs])
        changed, pruned = changed + differs.sum(), pruned + (~np.asarray(mask)).sum()
    assert abs(changed - 0.5 * pruned) < 5 * (0.25 * pruned) ** 0.5
    chex.assert_trees_all_equal(state.trainable, after.trainable)


@pytest.mark.slow
def test_shuffled_masks_keep_their_counts():
    state = start()
    kept = edge_popup.masks(None, state.trainable.scores, state.weights, 0.3, RAMANUJAN)
    moved = edge_popup.shuffled(jax.random.key(0), kept)
    for name, mask in kept.items():
        axes = (-2, -1)
        np.testing.assert_array_equal(jnp.sum(mask, axes), jnp.sum(moved[name], axes))
        assert not np.array_equal(mask, moved[name])


@pytest.mark.parametrize(
    "variant",
    [pytest.param(RAMANUJAN, marks=pytest.mark.slow), edge_popup.VARIANTS["kaiming_global"]],
)
def test_sharded_runs_equal_the_run_on_one_device(variant):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    state, batch = start(variant=variant), tokens(0)
    shardings = placement.of(state, mesh)
    assert shardings.trainable.scores["h.mlp.in"].spec == jax.P(None, None, "model")
    assert moments(shardings).scores["wte"].spec == jax.P(None, "model")
    sharded = jax.jit(_step(variant, 1), out_shardings=(shardings, None))
    on_mesh = jax.device_put(state, shardings)
    rows = jax.device_put(batch, placement.of_batch(batch, mesh))
    alone = state
    for _ in range(3):
        on_mesh, metrics = sharded(on_mesh, rows, 0.3)
        alone, alone_metrics = make_step(variant)(alone, batch, 0.3)
    assert on_mesh.trainable.scores["wte"].sharding.spec == jax.P(None, "model")
    assert float(metrics["loss"]) == pytest.approx(float(alone_metrics["loss"]), rel=1e-4)


def test_learning_rate_follows_the_paper():
    schedule = edge_popup.Schedule(steps=11350, warmup=227)
    assert float(schedule.rate(0)) == 0.0
    assert float(schedule.rate(227)) == pytest.approx(1.0)
    assert float(schedule.rate(11350)) == pytest.approx(0.1)
    halfway = (227 + 11350) / 2
    assert float(schedule.rate(halfway)) == pytest.approx(0.55, abs=1e-3)


def test_scores_start_as_named():
    weights = {"a": jnp.zeros((3, 50, 40)), "b": jnp.zeros((200, 30))}
    uniform = edge_popup.init_scores(jax.random.key(0), weights, RAMANUJAN, fan_in={"b": 30})
    normal = edge_popup.init_scores(
        jax.random.key(0),
        weights,
        edge_popup.Variant(init=edge_popup.kaiming_normal, scope="matrix"),
        fan_in={"b": 30},
    )
    for name, inputs in (("a", 50), ("b", 30)):
        assert float(jnp.max(jnp.abs(uniform[name]))) <= inputs**-0.5
        for scores, sd in (
            (uniform[name], (3 * inputs) ** -0.5),
            (normal[name], (2 / inputs) ** 0.5),
        ):
            assert abs(float(jnp.std(scores)) - sd) < 5 * sd / (2 * scores.size) ** 0.5


def test_bad_settings():
    with refusals(r"^scope must be one of 'array', 'matrix', 'global', got 'layer'"):
        edge_popup.Variant(scope="layer")
    with refusals(r"^warmup must be an integer in \[0, 4\], got 5"):
        edge_popup.Schedule(steps=5, warmup=5)
    with refusals(r"^keep must be a number in \(0, 1\], got 0"):
        _step(RAMANUJAN, 1)(start(), tokens(0), 0)
    with refusals(r"^variant must be with redraw_every=0 in a step alone"):
        _step(edge_popup.VARIANTS["iterand"], 1)(start(), tokens(0), 0.3)
