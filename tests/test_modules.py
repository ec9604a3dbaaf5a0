"""Supermasks of Flax modules: the contract with `edge_popup`, for modules of every kind."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from refusals import refusals

from slth_jax import attention, edge_popup, initializers, models, storage, supermask, ticket
from slth_jax.modules import Attention, Decoder, Frozen, Score, Supermask

KEY = jax.random.key(1, impl="threefry2x32")
OPTIMIZER = optax.adam(0.01)
KEEP = 0.3


class Images(nnx.Module):
    """Convolutions, batch statistics and dropout."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 6, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(6, rngs=rngs)
        self.drop = nnx.Dropout(0.2, rngs=rngs)
        self.out = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
        hidden = nnx.relu(self.norm(self.conv(x.reshape(-1, 4, 4, 1)))).mean((1, 2))
        return self.out(self.drop(hidden))


class Tied(nnx.Module):
    """Two layers with one array, and attention."""

    def __init__(self, rngs):
        self.first = nnx.Linear(16, 16, rngs=rngs)
        self.second = nnx.Linear(16, 16, rngs=rngs)
        self.second.kernel = self.first.kernel
        self.attention = nnx.MultiHeadAttention(2, 16, rngs=rngs, decode=False)
        self.out = nnx.Linear(16, 3, rngs=rngs)

    def __call__(self, x):
        hidden = self.second(nnx.relu(self.first(x)))
        return self.out(self.attention(hidden[:, None])[:, 0])


class LinenModel(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(3)(linen.relu(linen.Dense(16)(x)))


class Theory(nnx.Module):
    def __init__(self, rngs):
        self.attention = Attention(2, 4, 3, n_k=5, n_v=6, rngs=rngs)

    def __call__(self, x):
        return self.attention(x.reshape(-1, 4, 4)).mean(1)


class Digits(nnx.Module):
    """The network of Flax's MNIST tutorial in small: two convolutions, average pooling."""

    def __init__(self, rngs):
        self.first = nnx.Conv(1, 4, kernel_size=(3, 3), rngs=rngs)
        self.second = nnx.Conv(4, 8, kernel_size=(3, 3), rngs=rngs)
        self.pool = functools.partial(nnx.avg_pool, window_shape=(2, 2), strides=(2, 2))
        self.hidden = nnx.Linear(8, 6, rngs=rngs)
        self.out = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
        x = self.pool(nnx.relu(self.first(x.reshape(-1, 4, 4, 1))))
        x = self.pool(nnx.relu(self.second(x)))
        return self.out(nnx.relu(self.hidden(x.reshape(len(x), -1))))


class Divergence(nnx.Variable):
    """A part of a loss that a layer leaves behind."""


class Encoder(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(16, 12, rngs=rngs)
        self.mean = nnx.Linear(12, 4, rngs=rngs)
        self.log_std = nnx.Linear(12, 4, rngs=rngs)
        self.rngs = rngs

    def __call__(self, x):
        hidden = nnx.relu(self.hidden(x))
        mean, log_std = self.mean(hidden), self.log_std(hidden)
        terms = jnp.exp(2 * log_std) + mean**2 - 1 - 2 * log_std
        self.divergence = Divergence(0.5 * jnp.mean(terms))
        return mean + jnp.exp(log_std) * jax.random.normal(self.rngs.noise(), mean.shape)


class Autoencoder(nnx.Module):
    """The variational autoencoder of Flax's examples in small: noise, and a loss left behind."""

    def __init__(self, rngs):
        self.encoder = Encoder(rngs)
        self.decoder = nnx.Sequential(
            nnx.Linear(4, 12, rngs=rngs), nnx.relu, nnx.Linear(12, 16, rngs=rngs)
        )

    def __call__(self, x):
        return self.decoder(self.encoder(x))


MODELS = {
    "images": Images,
    "digits": Digits,
    "autoencoder": Autoencoder,
    "tied": Tied,
    "sequential": lambda rngs: nnx.Sequential(
        nnx.Linear(16, 32, rngs=rngs), nnx.relu, nnx.Linear(32, 3, rngs=rngs)
    ),
    "linen": lambda rngs: nnx.bridge.ToNNX(LinenModel(), rngs=rngs).lazy_init(jnp.ones((1, 16))),
    "theory": Theory,
}
every_model = pytest.mark.parametrize("name", MODELS)


def build(name, seed=0):
    rngs = nnx.Rngs(jax.random.fold_in(KEY, seed))
    return Supermask(MODELS[name](rngs), keep=KEEP, rngs=rngs)


def batch(seed=0):
    x = jax.random.normal(jax.random.fold_in(KEY, 100 + seed), (8, 16))
    return x, jnp.argmax(x[:, :3], axis=1)


def loss_of(model, x, y):
    logits = model(x)
    left = jax.tree.leaves(nnx.pop(model, Divergence))
    if left:
        return optax.sigmoid_binary_cross_entropy(logits, 1.0 * (x > 0)).mean() + 0.1 * sum(left)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def step(model, optimizer, x, y):
    graded = nnx.value_and_grad(loss_of, argnums=nnx.DiffState(0, Score))
    loss, gradient = graded(model, x, y)
    optimizer.update(model, gradient)
    return loss


@functools.cache
def trained(name):
    """A module after three steps, which are compiled once, the weights before, and the losses."""
    model = build(name)
    optimizer = nnx.Optimizer(model, OPTIMIZER, wrt=Score)
    before = jax.tree.map(np.array, nnx.state(model, Frozen))
    chex.clear_trace_counter()
    traced = nnx.jit(chex.assert_max_traces(step, n=1))
    losses = [float(traced(model, optimizer, *batch(seed))) for seed in range(3)]
    return model, before, losses


@every_model
def test_weights_keep_their_bits_and_exactly_num_kept_connections_stay(name):
    model, before, losses = trained(name)
    assert np.all(np.isfinite(losses))
    chex.assert_trees_all_equal(before, jax.tree.map(np.array, nnx.state(model, Frozen)))
    for mask in jax.tree.leaves(model.masks()):
        assert int(mask.sum()) == supermask.num_kept(mask.size, KEEP)


@every_model
def test_a_ticket_is_a_plain_module_with_equal_outputs(name):
    model, _, _ = trained(name)
    plain = model.ticket()
    for module in (model, plain):
        module.eval()
    np.testing.assert_array_equal(plain(batch()[0]), model(batch()[0]))
    assert not jax.tree.leaves(nnx.state(plain, (Score, Frozen)))
    masks = storage.named_leaves(model.masks())
    params = storage.named_leaves(nnx.to_pure_dict(nnx.state(plain, nnx.Param)))
    assert masks.keys() < params.keys() or masks.keys() == params.keys()
    for place, mask in masks.items():
        assert np.all((np.asarray(params[place]) != 0) <= np.asarray(mask)), place
    model.train()


@every_model
def test_a_step_of_flax_is_a_step_of_edge_popup(name):
    model = build(name, 3)
    optimizer = nnx.Optimizer(model, OPTIMIZER, wrt=Score)
    names = tuple(model.scores)
    graph, frozen, params, rest = nnx.split(model.model, Frozen, nnx.Param, ...)
    params, rest = (nnx.to_pure_dict(part) for part in (params, rest))
    flat = {".".join(map(str, path)): (path, v) for path, v in nnx.to_flat_state(frozen)}
    weights = {n: v.get_value() for n, (_, v) in flat.items()}
    scores = {n: score[...] for n, score in model.scores.items()}
    assert names == tuple(scores) and scores.keys() == weights.keys()

    def loss(named, rows):
        state = nnx.from_flat_state([(path, nnx.Param(named[n])) for n, (path, _) in flat.items()])
        return loss_of(nnx.merge(graph, state, nnx.State(params), nnx.State(rest)), *rows)

    optimizer_of_scores = OPTIMIZER
    state = edge_popup.start(weights, edge_popup.Trainable(scores, {}), optimizer_of_scores)
    options = {"optimizer": OPTIMIZER, "variant": edge_popup.VARIANTS["ramanujan"]}
    after, metrics = jax.jit(functools.partial(edge_popup.step, loss=loss, **options))(
        KEY, state, batch(), KEEP
    )
    value = nnx.jit(step)(model, optimizer, *batch())
    np.testing.assert_allclose(value, metrics["loss"], rtol=1e-5)
    moments = nnx.to_pure_dict(nnx.state(optimizer.opt_state))
    ours = jax.tree.leaves(after.opt_state[0].mu)
    theirs = jax.tree.leaves(moments[0]["mu"]["scores"])
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_state_goes_on_and_evaluation_uses_it():
    model, _, _ = trained("images")
    fresh = build("images")
    count = int(fresh.model.drop.rngs.count[...])
    assert int(model.model.drop.rngs.count[...]) == count + 3
    assert not np.array_equal(model.model.norm.mean[...], fresh.model.norm.mean[...])
    model.eval()
    statistics = np.array(model.model.norm.mean[...])
    model(batch()[0])
    np.testing.assert_array_equal(statistics, model.model.norm.mean[...])
    inference = jax.jit(lambda x: model(x))  # closed over, as many do it
    np.testing.assert_allclose(inference(batch()[0]), model(batch()[0]), atol=1e-5)
    model.train()


def test_shared_arrays_have_one_mask_and_biases_of_two_dimensions_none():
    model = build("tied")
    assert sorted(model.scores) == [
        "attention.key.kernel", "attention.out.kernel", "attention.query.kernel",
        "attention.value.kernel", "first.kernel", "out.kernel",
    ]  # fmt: skip
    plain = model.ticket()
    assert plain.first.kernel is plain.second.kernel
    # Query kernels are [in, heads, width]: 16 inputs; the output's are [heads, width, out].
    bound = 16**-0.5
    for name in ("attention.query.kernel", "attention.out.kernel"):
        largest = float(jnp.max(jnp.abs(model.scores[name][...])))
        assert 0.95 * bound < largest <= bound


@pytest.mark.slow
@pytest.mark.parametrize("name", ["images", "tied", "digits", "autoencoder", "tiny"])
def test_many_seeds_under_vmap_are_a_loop(name):
    count, rows = 64, batch()

    def tiny(rngs):
        return nnx.Sequential(nnx.Linear(16, 6, rngs=rngs), nnx.tanh, nnx.Linear(6, 3, rngs=rngs))

    def create(key):
        rngs = nnx.Rngs(key)
        model = Supermask((MODELS | {"tiny": tiny})[name](rngs), keep=KEEP, rngs=rngs)
        return model, nnx.Optimizer(model, optax.sgd(0.5), wrt=Score)

    @nnx.jit
    @nnx.vmap(in_axes=(0, 0, None))
    def step_together(model, optimizer, rows):
        return step(model, optimizer, *rows)

    step_alone = nnx.jit(step)
    keys = jax.random.split(KEY, count)
    models, optimizers = nnx.vmap(create)(keys)
    together = np.array([step_together(models, optimizers, rows) for _ in range(3)])
    alone = []
    for key in keys:
        model, optimizer = create(key)
        alone.append([float(step_alone(model, optimizer, *rows)) for _ in range(3)])
    np.testing.assert_allclose(together.T, alone, rtol=1e-4)
    assert len(np.unique(together[0])) > count // 2 and np.any(together[2] != together[0])


def test_orbax_saves_and_restores(tmp_path):
    from orbax.checkpoint import v1 as ocp

    model, _, _ = trained("images")
    state = nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.RngState)))
    ocp.save(tmp_path / "model", state)
    other = build("images", 5)
    target = nnx.state(other, nnx.Not(nnx.RngState))
    nnx.replace_by_pure_dict(target, ocp.load(tmp_path / "model", state))
    nnx.update(other, target)
    for module in (model, other):
        module.eval()
    np.testing.assert_array_equal(other(batch()[0]), model(batch()[0]))
    model.train()


def test_a_ticket_file_of_a_module_verifies(tmp_path):
    def source(key):
        return nnx.to_pure_dict(nnx.state(MODELS["sequential"](nnx.Rngs(key)), nnx.Param))

    key = jax.random.key(7, impl=ticket.IMPL)
    model = Supermask(MODELS["sequential"](nnx.Rngs(key)), keep=KEEP, rngs=nnx.Rngs(1))
    sources = {"mine": source}
    made_of = ticket.create("mine", {}, 7, model.masks(), weights=source(key), sources=sources)
    path = tmp_path / "mine.ticket.safetensors"
    ticket.save(path, made_of)
    kept = sum(int(mask.sum()) for mask in jax.tree.leaves(model.masks()))
    assert ticket.verify(path, sources=sources).num_kept == kept
    params = ticket.materialize(ticket.load(path), sources=sources)
    expected = nnx.to_pure_dict(nnx.state(model.ticket(), nnx.Param))
    chex.assert_trees_all_equal(params, expected)


@pytest.mark.slow
def test_other_parameters_train_if_asked_and_fractions_differ_by_name():
    rngs = nnx.Rngs(KEY)
    model = Supermask(
        MODELS["sequential"](rngs), keep={"layers.0.kernel": 0.1, "layers.2.kernel": 0.5}, rngs=rngs
    )
    masks = storage.named_leaves(model.masks())
    kept = {name: int(mask.sum()) for name, mask in masks.items()}
    assert kept == {"layers.0.kernel": 51, "layers.2.kernel": 48}
    optimizer = nnx.Optimizer(model, OPTIMIZER, wrt=nnx.Param)
    gradient = nnx.grad(loss_of)(model, *batch())
    optimizer.update(model, gradient)
    assert np.any(np.asarray(model.model.layers[0].bias[...]) != 0)


def test_forms_that_depend_on_the_step_and_wrong_fractions_are_refused():
    rngs = nnx.Rngs(KEY)
    annealed = edge_popup.Variant(keep_at=lambda keep, step: keep)
    for arguments, message in (
        ({"variant": "iterand"}, "variant must be a form without redraw_every and keep_at"),
        ({"variant": annealed}, "variant must be a form without redraw_every and keep_at"),
        ({"keep": 1.5}, r"keep must be a number in \(0, 1\], got 1.5"),
        ({"keep": {"layers.0": 0.5}}, "keep must be a dictionary with one entry for 'layers.2.k"),
        ({"keep": {"layers": 0.5, "other": 0.1}}, "keep must be a dictionary by names in"),
    ):
        with refusals(message):
            Supermask(MODELS["sequential"](rngs), rngs=rngs, **{"keep": KEEP, **arguments})
    model = Supermask(MODELS["sequential"](rngs), keep={"layers": 0.5}, rngs=rngs)
    assert model.keep == {"layers.0.kernel": 0.5, "layers.2.kernel": 0.5}


class Bare(nnx.Module):
    """Arrays that are no variables: a table, and a count that every call raises."""

    def __init__(self, rngs):
        self.table = jnp.arange(16.0)[None]
        self.count = jnp.zeros(())
        self.out = nnx.WeightNorm(nnx.Linear(16, 3, rngs=rngs), rngs=rngs)

    def __call__(self, x):
        self.count = self.count + 1
        return self.out(x * self.table)


def test_arrays_that_are_no_variables_are_state():
    rngs = nnx.Rngs(KEY)
    model = Supermask(Bare(rngs), keep=KEEP, rngs=rngs)
    assert list(model.scores) == ["out.layer_instance.kernel"]
    optimizer = nnx.Optimizer(model, OPTIMIZER, wrt=Score)
    train = nnx.jit(step)
    for seed in range(2):
        assert np.isfinite(train(model, optimizer, *batch(seed)))
    assert float(model.model.count) == 2
    np.testing.assert_array_equal(model.model.table[0], jnp.arange(16.0))


@pytest.mark.slow
def test_fractions_may_be_traced():
    keeps = jnp.array([0.1, 0.5, 0.9])

    @nnx.vmap
    def create(key, keep):
        rngs = nnx.Rngs(key)
        model = MODELS["sequential"](rngs)
        by_name = {"layers.0": keep, "layers.2": 0.5}
        return [Supermask(model, keep=kept, rngs=rngs) for kept in (keep, by_name)]

    count = nnx.jit(nnx.vmap(lambda model: [mask.sum() for mask in jax.tree.leaves(model.masks())]))
    alike, by_name = map(count, create(jax.random.split(KEY, 3), keeps))
    for counts, fractions in ((alike, (keeps, keeps)), (by_name, (keeps, [0.5] * 3))):
        for size, kept, shares in zip((512, 96), counts, fractions, strict=True):
            expected = [supermask.num_kept(size, keep) for keep in np.asarray(shares)]
            np.testing.assert_array_equal(kept, expected)
    assert supermask.num_kept(512, 0.29) == sum(
        int(mask.sum())
        for mask in jax.tree.leaves(
            Supermask(
                nnx.Linear(512, 1, rngs=nnx.Rngs(0)), keep=np.float32(0.29), rngs=nnx.Rngs(0)
            ).masks()
        )
    )


def test_types_and_metadata_of_variables_stay():
    lora = nnx.LoRA(6, 2, 3, rngs=nnx.Rngs(0), a_initializer=nnx.with_metadata(
        nnx.initializers.normal(), axes=("in", "rank")))  # fmt: skip
    model = Supermask(lora, keep=KEEP, rngs=nnx.Rngs(1))
    plain = model.ticket()
    assert type(plain.lora_a) is nnx.LoRAParam and plain.lora_a.get_metadata("axes")[0] == "in"
    assert model.scores["lora_a"].get_metadata("axes") == ("in", "rank")
    assert nnx.state(plain, nnx.LoRAParam).keys() == nnx.state(lora, nnx.LoRAParam).keys()


def test_modules_and_streams_that_cannot_be_used_are_named():
    inner = nnx.Sequential(
        Supermask(nnx.Linear(3, 3, rngs=nnx.Rngs(0)), keep=0.5, rngs=nnx.Rngs(0))
    )
    with refusals("model must be a module without a Supermask inside, got Sequential"):
        Supermask(inner, keep=0.5, rngs=nnx.Rngs(0))
    with refusals(r"rngs must be with a stream 'params' for the first scores, got \['dropout'\]"):
        Supermask(nnx.Linear(3, 3, rngs=nnx.Rngs(0)), keep=0.5, rngs=nnx.Rngs(dropout=0))
    with refusals(r"keep must be one fraction if scope is 'global', got \['kernel'\]"):
        variant = edge_popup.VARIANTS["kaiming_global"]
        linear = nnx.Linear(3, 3, rngs=nnx.Rngs(0))
        Supermask(linear, keep={"kernel": 0.5}, rngs=nnx.Rngs(0), variant=variant)


@pytest.mark.slow
def test_the_decoder_is_the_functions_of_models():
    settings = models.make_settings(
        vocab_size=24, width=16, num_blocks=2, num_heads=2, max_length=8, activation="relu"
    )
    params = models.initialise(KEY, settings, models.Initial(sd=0.2))
    tokens = jax.random.randint(KEY, (3, 8), 0, 24)
    model = Decoder(params, settings)
    np.testing.assert_array_equal(model(tokens), models.apply(params, tokens, settings))
    variant = edge_popup.Variant(scope="matrix")
    masked = Supermask(model, keep=KEEP, rngs=nnx.Rngs(KEY), variant=variant)
    assert sorted(masked.scores) == [
        f"params.{name}" for name in sorted(models.settings.matrix_shapes(settings))
    ]
    for mask in jax.tree.leaves(masked.masks()):
        count = supermask.num_kept(mask.shape[-2] * mask.shape[-1], KEEP)
        np.testing.assert_array_equal(mask.sum((-2, -1)), count)
    gradient = nnx.grad(lambda m: m.ticket().loss(tokens), argnums=nnx.DiffState(0, Score))(masked)
    assert len(jax.tree.leaves(gradient)) == len(masked.scores)


def test_the_attention_of_the_theory():
    layer = Attention(2, 4, 3, n_k=5, n_v=6, rngs=nnx.Rngs(KEY))
    x = jax.random.normal(KEY, (2, 7, 4))
    params = initializers.theory_attention(
        nnx.Rngs(KEY).params(), num_heads=2, d_in=4, d_out=3, n_k=5, n_v=6
    )
    expected = jax.vmap(lambda rows: attention.apply(params, rows))(x)
    np.testing.assert_allclose(layer(x), expected, atol=1e-6)
    masked = Supermask(layer, keep=KEEP, rngs=nnx.Rngs(KEY))
    bound = float(jnp.max(jnp.abs(masked.scores["w_o"][...])))
    assert bound <= 6**-0.5


def test_sampled_masks_differ_from_call_to_call():
    def masks(key, scores, weights, keep):
        return jax.random.bernoulli(key, jax.nn.sigmoid(scores))

    variant = dataclasses.replace(edge_popup.VARIANTS["ramanujan"], masks=masks)
    for rngs in (nnx.Rngs(params=0, masks=1), nnx.Rngs(0)):
        model = Supermask(MODELS["sequential"](rngs), keep=KEEP, rngs=rngs, variant=variant)
        first, second = model(batch()[0]), model(batch()[0])
        assert not np.array_equal(first, second)
