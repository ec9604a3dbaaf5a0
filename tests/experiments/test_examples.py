"""The examples do as they say, in few lines: the theorem, a table of learned masks, variants."""

import ast
import inspect
import io
import tokenize
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.examples import bernoulli_masks, one_ticket, weight_times_score
from slth_jax import edge_popup, supermask


def test_one_ticket_needs_jax_and_the_library_alone():
    tree = ast.parse(Path(one_ticket.__file__).read_text())
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module.split(".")[0])
    assert modules == {"jax", "slth_jax"}


def test_one_ticket_approximates_its_target():
    """The theorem holds with high probability: a rare source lacks samples for some entry."""
    outputs, errors = jax.lax.map(one_ticket.main, jax.random.split(jax.random.key(0), 4))
    assert jnp.all(outputs > 0.1)
    assert jnp.median(errors / outputs) < 1e-3


@pytest.mark.slow
def test_masks_of_one_ticket_keep_each_hidden_unit_for_one_input():
    source, target = (one_ticket.draw(jax.random.key(1), n) for n in (one_ticket.N, 4))
    _, m_k, m_v, _ = one_ticket.prune_attention(source, target)
    for mask in (m_k, m_v):
        assert mask.shape == (one_ticket.HEADS, one_ticket.D, one_ticket.N)
        assert jnp.all(mask.sum(axis=1) == 1)


def code_lines(module):
    """The number of lines of code, without docstrings, comments and blank lines."""
    text = inspect.getsource(module)
    skipped = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in skipped and not token.string.startswith('"""') and token.string:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines)


@pytest.fixture(scope="module")
def digits_table():
    pytest.importorskip("sklearn")
    from experiments.examples import digits_table

    return digits_table


@pytest.mark.slow
def test_a_table_of_learned_masks_takes_25_lines(digits_table):
    assert code_lines(digits_table) <= 25
    fits = digits_table.main(steps=2, seeds=1)
    shown = [line.split()[:3] for line in repr(fits).splitlines()]
    assert shown == [
        ["method", "keep", "count"],
        *(["edge-popup", keep, "1"] for keep in ("0.1", "0.3", "0.5")),
        ["dense", "1", "1"],
        *(["random", keep, "1"] for keep in ("0.1", "0.3", "0.5")),
    ]
    assert "accuracy" in repr(fits).splitlines()[0]


@pytest.mark.slow
def test_the_table_is_resumed_to_the_same_bits_and_evaluates_as_it_trains(
    digits_table, tmp_path, monkeypatch, compiled_in_full
):
    batch = digits_table.batch
    whole = digits_table.main(steps=110, seeds=1)

    def stopped(step):
        if step == 105:
            raise KeyboardInterrupt
        return batch(step)

    monkeypatch.setattr(digits_table, "batch", stopped)
    with pytest.raises(KeyboardInterrupt):
        digits_table.main(steps=110, seeds=1, out=tmp_path)
    monkeypatch.setattr(digits_table, "batch", batch)
    again = digits_table.main(steps=110, seeds=1, out=tmp_path)
    for before, after in zip(whole, again, strict=True):
        assert before.log == after.log
        for a, b in zip(*map(jax.tree.leaves, (before.masks, after.masks)), strict=True):
            np.testing.assert_array_equal(a, b)
    for fit in whole[:3]:  # under masks; moving averages lag behind weights that train this fast
        modes = {}
        for mode in ("train", "eval"):
            getattr(fit.ticket, mode)()
            rows = digits_table.x[:1300], digits_table.y[:1300]
            modes[mode] = float(digits_table.evaluate(fit.ticket, rows)["accuracy"])
        # Twice the standard error of the difference of two shares of 1,300 images.
        noise = 2 * np.sqrt(2 * modes["train"] * (1 - modes["train"]) / 1300)
        assert modes["eval"] > 0.3 and modes["eval"] >= modes["train"] - noise, fit.setting


@pytest.mark.parametrize(
    "example", [weight_times_score, pytest.param(bernoulli_masks, marks=pytest.mark.slow)]
)
def test_a_variant_of_a_users_own_takes_15_lines(example):
    assert code_lines(example) <= 15
    key = jax.random.key(3)
    target = jax.random.normal(jax.random.key(4), (16, 2))

    def draw(key):
        return {"a": jax.random.normal(key, (16, 64)) / 4, "b": jnp.ones((64, 2)) / 8}

    def batch(step):
        x = jax.random.normal(jax.random.fold_in(key, step), (64, 16))
        return x, x @ target

    def loss(params, rows):
        return jnp.mean((rows[0] @ params["a"] @ params["b"] - rows[1]) ** 2)

    training = edge_popup.Training(
        60, optax.adam(0.05), evaluate_every=20, validation=[batch(99)], evaluate_first=True
    )
    [fit] = edge_popup.fit(
        key, draw, loss, batch, keep=0.3, training=training, masking=example.MASKING
    )
    assert fit.best_loss < 0.8 * fit.log[0]["validation"]
    if example is weight_times_score:
        scores = jax.random.normal(key, (8, 8))
        weights = jax.random.normal(jax.random.key(5), (8, 8))
        mask = np.asarray(example.masks(key, scores, weights, 0.3)).reshape(-1)
        kept = np.argsort(-np.abs(np.asarray(scores * weights)).reshape(-1))[
            : supermask.num_kept(64, 0.3)
        ]
        np.testing.assert_array_equal(np.flatnonzero(mask), np.sort(kept))
