"""Every program of the library, compiled for TPUs and GPUs: it compiles, fits, and stays apart.

`tests/compilers/run` makes an environment with the TPU compiler and runs this file there; in an
environment without a compiler its cells are skipped.
"""

import functools

import jax
import jax.numpy as jnp
import pytest
from machines_at_hand import skip_without

from slth_jax import (
    attention,
    construction,
    factored,
    initializers,
    machines,
    models,
    subset_sum,
    supermask,
)
from slth_jax.construction import rules
from slth_jax.factored import solve

TPU, TPUS, POD, GPU, GPUS = "v5e:1x1", "v5e:2x2", "v6e:16x16", "h100:1", "h100:4"
MIB = 2**20
SHAPE = {"vocab_size": 50257, "max_length": 1024, "width": 256, "num_heads": 4, "num_blocks": 4}


def shapes_of(tree, place):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)


def along(devices, axis="trial"):
    return jax.NamedSharding(machines.mesh_of(devices, names=(axis,)), jax.P(axis))


def everywhere(devices):
    return jax.NamedSharding(machines.mesh_of(devices), jax.P())


def of_seeds(trial):
    """Return the program of independent trials, 8 per device, in a plain jit."""

    def trace(devices):
        seeds = jax.ShapeDtypeStruct((8 * len(devices),), jnp.uint32, sharding=along(devices))
        return jax.jit(jax.vmap(trial)).trace(seeds)

    return trace


def layers(seed, n=16):
    key = jax.random.key(seed, impl="threefry2x32")
    draw = functools.partial(initializers.theory_attention, num_heads=1, d_in=2, d_out=2)
    return draw(jax.random.fold_in(key, 1), n_k=2, n_v=2), draw(key, n_k=n, n_v=n)


def solved(n, batch=4096):
    def trace(devices):
        place = along(devices)
        shape = (batch * len(devices), n)
        samples = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=place)
        value = jax.ShapeDtypeStruct(shape[:1], jnp.float32, sharding=place)
        return jax.jit(subset_sum.solve).trace(samples, value)

    return trace


def pruned(rule):
    def trial(seed):
        target, source = layers(seed)
        return construction.prune_attention(source, target, construction=rule)

    return of_seeds(trial)


def normal(key, number, shape):
    return jax.random.normal(jax.random.fold_in(key, number), shape)


def product(seed):
    key = jax.random.key(seed, impl="threefry2x32")
    shapes = ((4, 32), (32, 4), (4, 4))
    return construction.prune_product(*(normal(key, i, shape) for i, shape in enumerate(shapes)))


def relu_layer(seed):
    key = jax.random.key(seed, impl="threefry2x32")
    shapes = ((48, 3), (4, 48), (4, 3))
    return construction.prune_relu_layer(*(normal(key, i, s) for i, s in enumerate(shapes)))


def applied(seed):
    target, _ = layers(seed)
    return attention.apply(target, jnp.ones((128, 2)))


def masked(seed):
    scores = jax.random.normal(jax.random.key(seed, impl="threefry2x32"), (64, 256))
    return supermask.from_scores(scores, 0.3)


def sweeping(devices):
    def trial(key, hparams):
        target, source = layers(jax.random.bits(key, (), jnp.uint32))
        masks = construction.prune_attention(source, target)
        ticket = construction.apply_masks(source, masks)
        return {"error": attention.error(ticket, target, jnp.ones((16, 2)) * hparams["scale"])}

    from slth_jax.sweep.plan import make_plan
    from slth_jax.sweep.program import Program

    plan = make_plan(seeds=4096, grid={"scale": [1.0]}, batch=64)
    return Program(trial, plan, 0, machines.mesh_of(devices)).trace()


def generating(devices):
    settings = models.make_settings(**SHAPE)
    initial = models.Initial(sd=0.02)
    params = jax.eval_shape(lambda: models.initialise(jax.random.key(0), settings, initial))
    cache = jax.eval_shape(lambda: models.init_cache(settings, 1, 128))
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    place = everywhere(devices)
    step = jax.jit(lambda params, cache, tokens: models.extend(params, cache, tokens, settings))
    return step.trace(*(shapes_of(x, place) for x in (params, cache, tokens)))


def transformer(seed):
    key = jax.random.key(seed, impl="threefry2x32")
    draw = functools.partial(initializers.theory_transformer, num_blocks=1, num_heads=1, d=2)
    target = draw(jax.random.fold_in(key, 1), hidden=(), units=(2,), n_k=2, n_v=2)
    source = draw(key, hidden=(2,), units=(24, 24), n_k=12, n_v=12)
    return construction.prune_transformer(source, target)


def hiding(bits=None):
    """Return the step of `hide`: 64 rows per device of a projection of width 256."""

    def trace(devices):
        settings = models.make_settings(**SHAPE)
        bands = None if bits is None else factored.Bands(bits, states=10)
        rule = rules.for_samples(16, many=True) if bands is None else bands.rule()
        samples = 16 if bits is None else 2**bits
        spec = factored.Spec(settings, samples, rule, attention="factored", bands=bands)
        part = next(part for part in spec.parts if part.kind == "q")
        return solve.trace(part, spec.rule(part), devices)

    return trace


# name: program, machines, most MiB per device, whether its trials are independent.
TABLE = {
    **{f"solve, n = {n}": (solved(n), (TPU, TPUS, GPU, GPUS), 600, True) for n in (12, 20, 24)},
    **{
        f"prune_attention, {rule}": (pruned(rule), (TPUS, GPUS), 600, True)
        for rule in construction.RULES
    },
    "prune_product": (of_seeds(product), (TPUS, GPUS), 600, True),
    "prune_relu_layer": (of_seeds(relu_layer), (TPUS, GPUS), 600, True),
    "attention.apply": (of_seeds(applied), (TPUS, GPUS), 8, True),
    "from_scores": (of_seeds(masked), (TPUS, GPUS), 64, True),
    "sweep": (sweeping, (TPU, TPUS, POD, GPUS), 600, True),
    "prune_transformer": (of_seeds(transformer), (TPUS, GPUS), 600, True),
    "hide": (hiding(), (TPU, TPUS, GPUS), 600, True),
    "hide, 5 bits": (hiding(5), (TPUS, GPUS), 600, True),
    "generation with a cache": (generating, (TPU, GPU), 400, True),
}
COUNTING = ("from_scores",)
CELLS = [(name, on) for name, row in TABLE.items() for on in row[1]]


@pytest.mark.parametrize(("name", "on"), CELLS)
def test_it_compiles_fits_and_stays_apart(name, on):
    skip_without(on)
    trace, _, most_mib, independent = TABLE[name]
    report = machines.compile_for(on, trace)
    assert not report.callbacks
    assert report.memory <= most_mib * MIB, report.lines()
    if independent:
        # Masks are found by counting until all trials are done, on which devices must agree.
        assert set(report.collectives) <= ({"scalar"} if name in COUNTING else set())
    if name.startswith("solve") and "v5e" in on:
        # Lists stay in the vector memory: only samples and results pass through the large one.
        batch = 4096
        assert (report.arguments + report.results + report.temporary) / batch < 400
        assert machines.loop_traffic(report.text) < 1024
