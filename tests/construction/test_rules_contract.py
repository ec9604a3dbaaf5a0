"""Every rule with every function: compiled or not, batched or not, once compiled, dtypes."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import refusals

from slth_jax import construction
from slth_jax.construction import prune, relu
from slth_jax.transformer import Block, Linear
from slth_jax.types import AttentionParams

KEY = jax.random.key(11, impl="threefry2x32")


def uniform(index, *shape):
    return jax.random.uniform(jax.random.fold_in(KEY, index), shape, minval=-1.0)


def product():
    return uniform(0, 2, 9), uniform(1, 9, 3), uniform(2, 2, 3)


def attention(n=8, m=2):
    source = AttentionParams(*(uniform(i, 1, m, n) for i in (0, 1, 2)), uniform(3, 1, n, m))
    target = AttentionParams(*(uniform(i, 1, m, 3) for i in (4, 5, 6)), uniform(7, 1, 3, m))
    return source, target


def cross_attention(n=12):
    """Queries of width 2, keys of 3, values of 4; two heads with the same keys and values."""
    source = AttentionParams(
        uniform(0, 2, 2, n), uniform(1, 2, 3, n), uniform(2, 2, 4, n), uniform(3, 2, n, 2)
    )
    target = AttentionParams(
        uniform(4, 2, 2, 3), uniform(5, 1, 3, 3), uniform(6, 1, 4, 3), uniform(7, 2, 3, 2)
    )
    return source, target


def relu_layer():
    return uniform(0, 8, 2), uniform(1, 2, 8), uniform(2, 2, 2)


def layers():
    w1, w2, target = relu_layer()
    return (Linear(w1), Linear(w2, uniform(3, 2))), (Linear(target, uniform(3, 2)),)


def transformer():
    (of_source, of_target), (source, target) = attention(), layers()
    return (Block(of_source, source),), (Block(of_target, target),)


FUNCTIONS = {
    "product": (product, prune._solve_product),
    "attention": (attention, prune._solve_attention),
    "cross attention": (cross_attention, prune._solve_attention),
    "relu_layer": (relu_layer, relu._solve_layers),
    "layers": (layers, relu._solve_layers),
    "transformer": (transformer, prune._solve_transformer),
}
FAST = ("proof", "fitted")  # the simplest rule and the default, with every function
TABLE = [
    pytest.param(rule, name, marks=() if rule in FAST or name == "product" else pytest.mark.slow)
    for rule in construction.RULES
    for name in FUNCTIONS
]


@functools.cache
def pruned(rule, name):
    """Return masks and report of one call."""
    make, _ = FUNCTIONS[name]
    return getattr(construction, f"solve_{name.split()[-1]}")(*make(), construction=rule)


def scaled(args):
    """Return other numbers of the same shapes; biases must stay those of the target."""
    return jax.tree.map(lambda w: w if w.ndim == 1 else 0.7 * w, args)


@pytest.mark.parametrize("rule, name", TABLE)
def test_masks_are_booleans_of_the_source_and_the_report_is_short(rule, name):
    masks, report = pruned(rule, name)
    args = FUNCTIONS[name][0]()
    source = args[:2] if name in ("product", "relu_layer") else args[0]
    weights = [w for w in jax.tree.leaves(source) if w.ndim > 1]
    for mask, weight in zip(jax.tree.leaves(masks), weights, strict=True):
        assert mask.dtype == bool and mask.shape == weight.shape
    for entry in report if isinstance(report, list) else [report]:
        assert len(repr(entry)) < 160 and "num_sums=" in repr(entry)
    counts = [x for x in jax.tree.leaves(report) if jnp.issubdtype(x.dtype, jnp.integer)]
    assert all(int(x) >= 0 for x in counts)


@pytest.mark.parametrize("rule, name", TABLE)
def test_compiled_and_batched_as_one_by_one_and_compiled_once(rule, name):
    make, compiled = FUNCTIONS[name]

    def prune(*args):
        return getattr(construction, f"prune_{name.split()[-1]}")(*args, construction=rule)

    args, other = make(), scaled(make())
    first, before = pruned(rule, name).masks, compiled._cache_size()
    second = prune(*other)
    assert compiled._cache_size() == before, "a second call compiles nothing"
    batch = jax.tree.map(lambda a, b: jnp.stack([a, b]), args, other)
    chex.clear_trace_counter()  # it counts by the function's place, the same for all rows
    together = jax.jit(jax.vmap(chex.assert_max_traces(prune, 1)))
    lifted = together(*batch)
    together(*jax.tree.map(jnp.flip, batch))
    for index, masks in enumerate((first, second)):
        chex.assert_trees_all_equal(jax.tree.map(lambda m, i=index: m[i], lifted), masks)


@pytest.mark.parametrize("rule", construction.RULES)
def test_float64_is_rounded_and_half_precision_refused(rule):
    prune = functools.partial(construction.prune_product, construction=rule)
    wide = [np.asarray(x, np.float64) for x in product()]
    chex.assert_trees_all_equal(prune(*wide), pruned(rule, "product").masks)
    for dtype in (jnp.float16, jnp.bfloat16):
        with refusals(r"^left must be of dtype float32 or float64, got"):
            prune(*(x.astype(dtype) for x in product()))
    source, target = attention()
    half = jax.tree.map(lambda w: w.astype(jnp.bfloat16), source)
    with refusals(r"^source.w_q must be of dtype float32 or float64, got"):
        construction.prune_attention(half, target, construction=rule)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_unknown_rule_is_named(name):
    make, _ = FUNCTIONS[name]
    allowed = ", ".join(map(repr, construction.RULES))
    with refusals(rf"^construction must be one of {allowed}, got 'best'"):
        getattr(construction, f"prune_{name.split()[-1]}")(*make(), construction="best")


def test_bad_numbers_of_a_rule_are_named():
    with refusals(r"^shift_units must be an integer in \[0, 12\], got 13"):
        construction.shift(13, 4)
    with refusals(r"^reroll must be a number in \(0, 1\], got 0"):
        construction.shift(4, 4, reroll=0.0)
    with refusals(r"^centred must be true or false, got 'yes'"):
        construction.Search(centred="yes")
