import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from refusals import refusals

from slth_jax import supermask

KEEPS = [0.01, 0.1, 0.3, 0.5, 0.77, 1.0]
SIZES = [1, 2, 3, 7, 50, 101, 1023]


def brute_force(scores, count, magnitude=True):
    """Sort by (score downwards, index upwards) in float64."""
    flat = np.asarray(scores, np.float64).reshape(-1)
    order = np.lexsort((np.arange(flat.size), -(np.abs(flat) if magnitude else flat)))
    mask = np.zeros(flat.size, bool)
    mask[order[:count]] = True
    return mask.reshape(np.shape(scores))


def random_scores(size, kind):
    scores = np.array(jax.random.normal(jax.random.key(size), (size,)))
    if kind == "constant":
        scores[:] = -0.25
    elif kind == "zero":
        scores[:] = 0.0
        scores[::2] = -0.0
    elif kind == "few values":
        scores = np.round(scores * 2) / 2
    elif kind == "tiny":
        scores *= 1e-40  # denormal
    return scores


@pytest.mark.parametrize("kind", ["normal", "constant", "zero", "few values", "tiny"])
@pytest.mark.parametrize("magnitude", [True, False])
def test_mask_is_what_a_sort_gives(kind, magnitude):
    from_scores = jax.jit(functools.partial(supermask.from_scores, magnitude=magnitude))
    for size in SIZES:
        scores = random_scores(size, kind)
        for keep in KEEPS:
            count = supermask.num_kept(size, keep)
            mask = np.asarray(from_scores(scores, keep))
            assert mask.sum() == count
            np.testing.assert_array_equal(mask, brute_force(scores, count, magnitude))


def test_eager_and_traced_keep_agree():
    scores = random_scores(777, "few values").reshape(7, 111)
    for keep in KEEPS:
        eager = supermask.from_scores(scores, keep)
        traced = jax.jit(supermask.from_scores)(scores, keep)
        np.testing.assert_array_equal(eager, traced)


def test_one_program_for_all_fractions():
    from_scores = jax.jit(chex.assert_max_traces(supermask.from_scores, n=1))
    for keep in KEEPS:
        from_scores(jnp.ones(33), keep)


def test_num_kept_is_exact():
    assert supermask.num_kept(50, 0.29) == 15  # 14.5; float64 makes 14.499999999999998 of it
    assert supermask.num_kept(10**9, 0.3) == 300_000_000
    assert supermask.num_kept(10**9, np.float32(0.3)) == 300_000_000
    assert supermask.num_kept(10**9, jnp.float32(0.3)) == 300_000_000
    assert supermask.num_kept(3, 0.01) == 1
    assert supermask.num_kept(2**24 + 1, 1.0) == 2**24 + 1
    assert supermask.num_kept(7, 1) == 7


def test_traced_num_kept_equals_num_kept():
    keeps = [1e-6, 0.000123, 0.29, 0.333333, 0.7, 0.77, 0.999999, 1.0]
    for size in [1, 5, 50, 999_999, 1_000_000, 2**24 + 1, 1_234_567_891, 2**32 - 2]:
        traced = jax.vmap(functools.partial(supermask.num_kept_traced, size))(jnp.array(keeps))
        assert traced.tolist() == [supermask.num_kept(size, keep) for keep in keeps]


@pytest.mark.slow
def test_counts_above_2_24_entries_are_exact():
    size = 2**24 + 3
    scores = jnp.ones(size, jnp.float16)
    mask = jax.jit(supermask.from_scores)(scores, 0.999999)
    count = supermask.num_kept(size, 0.999999)
    assert int(jnp.sum(mask, dtype=jnp.int32)) == count
    assert bool(mask[count - 1]) and not bool(mask[count])


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_dtypes(dtype):
    scores = jax.random.normal(jax.random.key(0), (40, 13)).astype(dtype)
    mask = supermask.from_scores(scores, 0.3)
    np.testing.assert_array_equal(mask, brute_force(scores, 156))


def test_tree_has_one_threshold():
    keys = jax.random.split(jax.random.key(1))
    tree = {"a": jnp.round(jax.random.normal(keys[0], (5, 7)), 1), "b": jnp.ones((11,)) * 0.3}
    masks = supermask.from_tree(tree, 0.4)
    flat = np.concatenate([np.asarray(tree["a"]).reshape(-1), np.asarray(tree["b"])])
    expected = brute_force(flat, supermask.num_kept(46, 0.4))
    np.testing.assert_array_equal(masks["a"].reshape(-1), expected[:35])
    np.testing.assert_array_equal(masks["b"], expected[35:])


def test_vmap_is_a_loop():
    scores = jnp.round(jax.random.normal(jax.random.key(2), (4, 30)), 1)
    batched = jax.vmap(supermask.from_scores, in_axes=(0, None))(scores, 0.3)
    for row, mask in zip(scores, batched, strict=True):
        np.testing.assert_array_equal(mask, supermask.from_scores(row, 0.3))


def test_sharded_scores_are_not_gathered():
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    sharding = NamedSharding(mesh, jax.P("x", "y"))
    for scores in (
        jax.random.normal(jax.random.key(3), (16, 64)),
        jnp.round(jax.random.normal(jax.random.key(3), (16, 64))),
    ):
        from_scores = jax.jit(supermask.from_scores, out_shardings=sharding)
        sharded = jax.device_put(scores, sharding)
        text = from_scores.lower(sharded, 0.3).compile().as_text()
        assert "all-gather" not in text and "all-to-all" not in text
        np.testing.assert_array_equal(from_scores(sharded, 0.3), supermask.from_scores(scores, 0.3))


def test_straight_through_by_hand():
    """Loss = sum(g * w * m) on a 2x2 matrix: the score gradient is g * w * sign(score)."""
    weights = jnp.array([[2.0, -3.0], [0.5, 4.0]])
    scores = jnp.array([[0.9, -0.8], [0.1, -0.2]])
    upstream = jnp.array([[1.0, 10.0], [100.0, 1000.0]])

    def loss(scores):
        mask = supermask.from_scores(scores, 0.5)
        return jnp.sum(upstream * weights * supermask.straight_through(scores, mask))

    value, gradient = jax.value_and_grad(loss)(scores)
    assert value == 2.0 - 30.0
    np.testing.assert_array_equal(gradient, [[2.0, 30.0], [50.0, -4000.0]])


def test_straight_through_equals_finite_differences_of_the_surrogate():
    """Surrogate: the mask held fixed plus |score| - |score at the start|."""
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(4), 3)
        weights, x = jax.random.normal(keys[0], (6, 5)), jax.random.normal(keys[1], (3, 6))
        scores = jax.random.normal(keys[2], (6, 5), jnp.float64)
        mask = supermask.from_scores(scores, 0.3)

        def network(masked):
            return jnp.sum(jnp.tanh(x @ masked) ** 2)

        def surrogate(moved):
            return network(weights * (mask + jnp.abs(moved) - jnp.abs(scores)))

        gradient = jax.grad(
            lambda s: network(weights * supermask.straight_through(s, mask)),
        )(scores)
        step = 1e-6
        for index in np.ndindex(6, 5):
            up, down = (surrogate(scores.at[index].add(sign * step)) for sign in (1, -1))
            np.testing.assert_allclose(gradient[index], (up - down) / (2 * step), atol=1e-8)


@pytest.mark.parametrize("shape", [(1,), (8,), (9,), (3, 5, 7)])
def test_pack_and_back(shape):
    mask = jax.random.bernoulli(jax.random.key(5), 0.3, shape)
    bits = supermask.pack(mask)
    assert bits.dtype == jnp.uint8
    np.testing.assert_array_equal(bits, np.packbits(np.asarray(mask).reshape(-1)))
    np.testing.assert_array_equal(supermask.unpack(bits, shape), mask)


@pytest.mark.parametrize("keep", [0, -0.1, 1.01, float("nan"), "0.3", True])
def test_bad_keep(keep):
    with refusals(r"^keep must be a number in \(0, 1\], got"):
        supermask.from_scores(jnp.ones(3), keep)


def test_other_bad_input():
    with refusals(r"^size must be"):
        supermask.num_kept(0, 0.5)
    with refusals(r"^scores must be a floating-point array"):
        supermask.from_scores(jnp.arange(3), 0.5)
    with refusals(r"^scores must be at least one entry"):
        supermask.from_scores(jnp.ones((0, 3)), 0.5)
    with refusals(r"^mask must be a boolean array"):
        supermask.pack(jnp.ones(3))
    with refusals(r"^bits must be 2 bytes for shape \(9,\), got 1 bytes"):
        supermask.unpack(jnp.zeros(1, jnp.uint8), (9,))
    with refusals(r"^bits must be of dtype uint8"):
        supermask.unpack(jnp.zeros(2, jnp.int32), (9,))


def test_leaves_of_different_dtypes_are_compared_as_numbers():
    scores = [jnp.array([10, 20], jnp.bfloat16), jnp.array([0.1, 0.2], jnp.float32)]
    masks = supermask.from_tree(scores, 0.5)
    np.testing.assert_array_equal(masks[0], [True, True])
    np.testing.assert_array_equal(masks[1], [False, False])
    scores = [jnp.array([0.5, -3], jnp.float16), jnp.array([1, -2], jnp.bfloat16)]
    masks = supermask.from_tree(scores, 0.5, magnitude=False)
    np.testing.assert_array_equal(masks, [[True, False], [True, False]])


@pytest.mark.parametrize("magnitude", [True, False])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_traced_nan_is_kept_whatever_its_sign(magnitude, sign):
    scores = jnp.array([0.5, -jnp.inf, jnp.inf, 1.0, jnp.nan]).at[4].set(jnp.float32(np.nan) * sign)
    scores = jnp.copysign(scores, jnp.array([1.0, -1.0, 1.0, 1.0, sign]))
    assert bool(jnp.signbit(scores[4])) == (sign < 0)
    masked = jax.jit(lambda s: supermask.from_scores(s, 0.2, magnitude=magnitude))(scores)
    np.testing.assert_array_equal(masked, [False, False, False, False, True])
