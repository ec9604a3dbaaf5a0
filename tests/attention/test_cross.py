"""Cross-attention and grouped queries: layers, masks of their tickets, and the tickets' files."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cells import cells
from flax import nnx
from refusals import refusals

from slth_jax import attention, cli, construction, guarantee, initializers, ticket, transformer
from slth_jax.storage import CheckpointError
from slth_jax.types import AttentionParams, Block

KEY = jax.random.key(21, impl="threefry2x32")
T, S = 6, 4  # tokens, and tokens of the memory
M, N, L, O = 3, 5, 4, 2  # widths of queries, keys, values and outputs
SHAPE = {"num_heads": 4, "d_in": M, "d_out": O, "d_memory": (N, L)}


def normal(index, *shape):
    return jax.random.normal(jax.random.fold_in(KEY, index), shape)


X, KEYS, VALUES = normal(0, T, M), normal(1, S, N), normal(2, S, L)
PAIR = KEYS, VALUES
ATTN_MASK = np.arange(S) <= np.arange(T)[:, None]


def layer(index=3, n=3, groups=4):
    """Return a cross-attention layer of 4 heads, of which each of `groups` serves the same."""
    params = initializers.theory_attention(jax.random.fold_in(KEY, index), n_k=n, n_v=n, **SHAPE)
    return params._replace(w_k=params.w_k[:groups], w_v=params.w_v[:groups])


def repeated(params):
    heads = len(params.w_q)
    w_k, w_v = (np.repeat(w, heads // len(w), axis=0) for w in (params.w_k, params.w_v))
    return params._replace(w_k=jnp.asarray(w_k), w_v=jnp.asarray(w_v))


def reference(params, x, keys, values, attn_mask=None):
    """Attention row by row in NumPy float64."""
    w_q, w_k, w_v, w_o = (np.asarray(w, np.float64) for w in params)
    x, keys, values = (np.asarray(rows, np.float64) for rows in (x, keys, values))
    out = np.zeros((len(x), w_o.shape[-1]))
    for h in range(len(w_q)):
        g = h * len(w_k) // len(w_q)
        for i in range(len(x)):
            seen = np.ones(len(keys), bool) if attn_mask is None else np.asarray(attn_mask)[i]
            logits = (x[i] @ w_q[h]) @ (keys @ w_k[g]).T / np.sqrt(w_q.shape[-1])
            weights = np.where(seen, np.exp(logits - logits[seen].max()), 0)
            out[i] += weights / weights.sum() @ (values @ w_v[g]) @ w_o[h]
    return out


@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize("attn_mask", [None, ATTN_MASK])
def test_it_matches_a_reference_row_by_row_and_the_merged_form(groups, attn_mask):
    params = layer(groups=groups)
    want = reference(params, X, KEYS, VALUES, attn_mask)
    np.testing.assert_allclose(
        attention.apply(params, X, attn_mask, memory=PAIR), want, atol=5e-5, rtol=1e-5
    )
    merged = attention.merge(params)
    assert merged.w_qk.shape == (4, M, N) and merged.w_vo.shape == (4, L, O)
    rows = jnp.array([5, 0, 2])
    chosen = attention.apply_merged(merged, X, attn_mask, memory=PAIR, queries=rows)
    np.testing.assert_allclose(chosen, want[rows], atol=5e-5, rtol=1e-5)
    blocked = attention.apply(params, X, attn_mask, memory=PAIR, block_size=4)
    np.testing.assert_allclose(blocked, want, atol=5e-5, rtol=1e-5)
    weights = attention.pattern(params, X, attn_mask, memory=PAIR)
    assert weights.shape == (4, T, S)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-6)


def test_one_memory_stands_for_keys_and_values_and_the_tokens_for_no_memory():
    shape = SHAPE | {"d_memory": N}
    params = initializers.theory_attention(KEY, n_k=3, n_v=3, **shape)
    both = attention.apply(params, X, memory=(KEYS, KEYS))
    np.testing.assert_array_equal(attention.apply(params, X, memory=KEYS), both)
    alone = initializers.theory_attention(KEY, n_k=3, n_v=3, **shape | {"d_memory": None})
    np.testing.assert_array_equal(attention.apply(alone, X, memory=X), attention.apply(alone, X))
    other = attention.apply(alone, X, memory=X[:2])
    np.testing.assert_allclose(other, reference(alone, X, X[:2], X[:2]), atol=5e-5, rtol=1e-5)


@pytest.mark.parametrize("groups", [6, 2, 1])
def test_grouped_queries_match_the_layer_of_flax(groups):
    module = nnx.MultiHeadAttention(
        6, 12, num_kv_heads=groups, use_bias=False, decode=False, rngs=nnx.Rngs(0)
    )
    x = normal(4, T, 12)
    kernels = (part.kernel[...].transpose(1, 0, 2) for part in (module.query, module.key))
    params = AttentionParams(
        *kernels, module.value.kernel[...].transpose(1, 0, 2), module.out.kernel[...]
    )
    assert params.w_k.shape == (groups, 12, 2)
    np.testing.assert_allclose(attention.apply(params, x), module(x[None])[0], atol=1e-5)
    chex.assert_trees_all_equal(repeated(params), attention.from_flax(module))


def test_contract_jit_vmap_gradient_and_one_compilation():
    params = layer(groups=2)
    run = lambda x, memory: attention.apply(params, x, ATTN_MASK, memory=memory)  # noqa: E731
    chex.clear_trace_counter()
    jitted = jax.jit(chex.assert_max_traces(run, n=1))
    np.testing.assert_allclose(jitted(X, PAIR), run(X, PAIR), atol=1e-5)
    jitted(X + 1, PAIR)
    batch = jnp.stack([X, 2 * X]), (jnp.stack([KEYS, KEYS + 1]), jnp.stack([VALUES, VALUES]))
    lifted = jax.vmap(run)(*batch)
    np.testing.assert_allclose(lifted[1], run(2 * X, (KEYS + 1, VALUES)), atol=1e-5)
    gradient = jax.grad(lambda memory: jnp.sum(run(X, memory)))(PAIR)
    assert all(np.isfinite(part).all() and np.any(part) for part in gradient)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"memory": None},
            r"^memory must be given for keys of width 5, values of width 4 and quer",
        ),
        ({"memory": KEYS}, r"^memory must be of shape \(any, 4\), got shape \(4, 5\)"),
        ({"memory": (KEYS,)}, r"^memory must be one array, or a tuple of two, got 1"),
        (
            {"memory": (KEYS, VALUES[:2])},
            r"^memory must be of shape \(4, any\), got shape \(2, 4\)",
        ),
        ({"memory": (VALUES, VALUES)}, r"^memory\[0\] must be of shape \(any, 5\)"),
        ({"memory": (KEYS[:0], VALUES[:0])}, r"^memory must be at least one token"),
        ({"memory": (KEYS * np.nan, VALUES)}, r"^memory must be finite"),
        ({"attn_mask": np.ones((T, T), bool)}, r"^attn_mask must be of shape \(6, 4\), got shape"),
        ({"attn_mask": KEYS}, r"^attn_mask must be a boolean array"),
        ({"queries": np.array([T])}, r"^queries must be indices in \[0, 5\], got 6"),
    ],
)
def test_bad_input_gives_one_line(change, message):
    with refusals(message):
        attention.apply(layer(), X, **{"memory": PAIR, **change})


def test_heads_that_do_not_divide_are_refused():
    params = layer(groups=3)
    for call in (
        lambda: attention.merge(params),
        lambda: construction.prune_attention(layer(n=20), params),
        lambda: guarantee.guaranteed_error(params, params, params, 1.0),
    ):
        with refusals(r"w_[kv] must be of a number of heads that divides 4, got 3"):
            call()
    with refusals(r"^source.w_k must be of shape \(4, 5, 20\), got shape \(2, 5, 20\)"):
        construction.prune_attention(layer(n=20, groups=2), layer())
    with refusals(r"^blocks\[0\].attention.w_k must be of shape \(any, 3, any\)"):
        transformer.apply((Block(layer(), ()),), X)


@pytest.mark.parametrize("name", cells(construction.RULES, fast=["proof"]))
def test_a_ticket_approximates_the_merged_matrices_within_the_bound(name):
    target, source = layer(5), layer(6, n=100)
    masks, report = construction.solve_attention(source, target, construction=name)
    chex.assert_trees_all_equal_shapes(masks, source)
    pruned = construction.apply_masks(source, masks)
    merged, expected = attention.merge(pruned), attention.merge(target)
    for part, target_part, numbers in zip(merged, expected, report, strict=True):
        assert int(numbers.num_sums) == target_part.size
        worst = float(jnp.max(jnp.abs(part - target_part)))
        assert worst == pytest.approx(float(numbers.max_error), abs=2e-5)
    x, keys, values = (rows / jnp.linalg.norm(rows, axis=-1, keepdims=True) for rows in (X, *PAIR))
    error = float(attention.error(pruned, target, x, ATTN_MASK, memory=(keys, values)))
    exact = reference(pruned, x, keys, values, ATTN_MASK) - reference(
        target, x, keys, values, ATTN_MASK
    )
    assert error == pytest.approx(np.linalg.norm(exact, axis=-1).max(), abs=2e-5)
    bound = guarantee.guaranteed_error(source, masks, target, max_norm=1.0)
    assert error < bound
    if name != "band":
        assert not guarantee.is_vacuous(source, masks, target, max_norm=1.0)


@pytest.mark.slow
def test_the_heads_of_a_grouped_target_are_approximated_one_by_one():
    grouped, source = layer(7, groups=2), layer(8, n=60)
    masks = construction.prune_attention(source, grouped)
    chex.assert_trees_all_equal(masks, construction.prune_attention(source, repeated(grouped)))
    pruned = construction.apply_masks(source, masks)
    sequences = jnp.stack([X, X / 2]), (jnp.stack([KEYS, KEYS]), jnp.stack([VALUES, VALUES]))
    errors = attention.error(pruned, grouped, sequences[0], memory=sequences[1])
    single = attention.error(pruned, grouped, X / 2, memory=PAIR)
    assert errors.shape == (2,) and float(errors[1]) == pytest.approx(float(single), abs=1e-5)
    bounds = [
        guarantee.guaranteed_error(source, masks, t, 1.0) for t in (grouped, repeated(grouped))
    ]
    assert bounds[0] == pytest.approx(bounds[1], rel=1e-9)
    with refusals(r"^target must be self-attention, got inputs of widths 3, 5 and 4"):
        guarantee.guaranteed_error_on(source, masks, grouped, X)
    with refusals(r"^memory must be of shape \(2, any, any\), got shape \(4, 5\)"):
        attention.error(pruned, grouped, sequences[0], memory=PAIR)
    with refusals(r"^ticket.w_k must be of shape \(any, 5, any\)"):
        attention.error(pruned._replace(w_k=pruned.w_v), grouped, X, memory=PAIR)


@pytest.mark.slow
def test_sources_of_every_distribution_have_the_widths_of_the_memory():
    for draw in initializers.ATTENTION.values():
        padded = draw(KEY, n_k=4, n_v=7, padded=9, **SHAPE)
        narrow = draw(KEY, n_k=4, n_v=7, **SHAPE)
        shapes = [w.shape for w in narrow]
        assert shapes == [(4, M, 4), (4, N, 4), (4, L, 7), (4, 7, O)]
        chex.assert_trees_all_equal(padded.narrow(4, 7), narrow)
        same = draw(KEY, n_k=4, n_v=7, **SHAPE | {"d_memory": M})
        chex.assert_trees_all_equal(same, draw(KEY, n_k=4, n_v=7, **SHAPE | {"d_memory": None}))
    for wrong in ((1, 2, 3), 0, (3, -1), "ab", 2.5):
        with refusals(r"^d_memory must be (an integer|a width)"):
            initializers.theory_attention(KEY, n_k=4, n_v=4, **SHAPE | {"d_memory": wrong})


@pytest.mark.slow
def test_the_bound_of_xavier_depends_on_the_width_of_the_memory():
    params = initializers.xavier_attention(KEY, n_k=50, n_v=70, **SHAPE)
    for w, fans in zip(params, ((M, 50), (N, 50), (L, 70), (70, O)), strict=True):
        bound = np.sqrt(6 / sum(fans))
        assert 0.9 * bound < float(jnp.max(jnp.abs(w))) <= bound


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Write the ticket of a grouped cross-attention layer; return its file and the inputs."""
    options = SHAPE | {"n_k": 40, "n_v": 40}
    source = initializers.theory_attention(jax.random.key(9, impl=ticket.IMPL), **options)
    target = layer(7, groups=2)
    masks = construction.prune_attention(source, target)
    x, keys, values = normal(10, 3, T, M), normal(11, 3, S, N), normal(12, 3, S, L)
    pruned = construction.apply_masks(source, masks)
    error = float(jnp.mean(attention.error(pruned, target, x, memory=(keys, values))))
    file = tmp_path_factory.mktemp("cross") / "cross.ticket.safetensors"
    new = ticket.create("theory", options, 9, masks, weights=source, metadata={"error": error})
    ticket.save(file, new)
    return file, target, x, (keys, values)


def test_a_ticket_is_saved_loaded_and_verified_with_its_memory(saved, tmp_path):
    file, target, x, memory = saved
    report = ticket.verify(file, target=target, inputs=x, memory=memory)
    assert report.error == pytest.approx(report.recorded, rel=1e-3) and report.error > 0
    again = ticket.load(file)
    assert again.options["d_memory"] == [N, L]
    weights = ticket.materialize(again)
    error = float(jnp.mean(attention.error(weights, target, x, memory=memory)))
    assert error == pytest.approx(report.error, rel=1e-3)
    ticket.save(file, again)  # the same bytes
    with pytest.raises(CheckpointError, match="the ticket's error is"):
        ticket.verify(file, target=target, inputs=x, memory=(memory[0], 2 * memory[1]))
    with refusals(r"^memory must be given for keys of width 5"):
        ticket.verify(file, target=target, inputs=x)
    with refusals(r"^memory must be of shape \(3, any, any\)"):
        ticket.verify(file, target=target, inputs=x, memory=PAIR)
    with refusals(r"^memory must be None for a transformer"):
        ticket.verify(file, target=[Block(target, ())], inputs=x, memory=memory)


def test_the_command_verifies_it_with_its_memory(saved, tmp_path, capsys):
    file, target, x, (keys, values) = saved
    np.savez(tmp_path / "target.npz", **target._asdict())
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "memory.npz", keys=keys, values=values)
    np.savez(tmp_path / "other.npz", rows=keys)
    command = ["ticket", "verify", file, "--target", tmp_path / "target.npz", "--inputs"]
    command += [tmp_path / "x.npy", "--memory"]
    assert cli.main([*map(str, command), str(tmp_path / "memory.npz")]) == 0
    assert "recorded" in capsys.readouterr().out
    assert cli.main([*map(str, command), str(tmp_path / "other.npz")]) == 2
    assert "--memory must be one array, or an archive of keys" in capsys.readouterr().err


@pytest.mark.slow
def test_the_least_width_of_a_cross_attention_layer():
    target = layer(13)
    options = {"key": KEY, "seeds": 2, "largest": 64, "construction": "proof"}
    result = construction.find_width(target, 1.0, **options)
    assert result.error <= 1.0 and result.width >= max(M, N, L)
    x, memory = normal(14, 2, T, M), (normal(15, 2, S, N), normal(16, 2, S, L))
    given = construction.find_width(target, 2.0, inputs=x, memory=memory, **options)
    assert given.error <= 2.0
    with refusals(r"^largest must be an integer >= 5, got 4"):
        construction.find_width(target, 1.0, **options | {"largest": 4})
