"""The error that a ticket claims, against one computed anew in NumPy; rows of sweeps as tickets."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import refusals

from slth_jax import construction, initializers, sweep, ticket
from slth_jax.storage import CheckpointError
from slth_jax.transformer import Block, Linear

SHAPE = {"num_heads": 2, "d_in": 3, "d_out": 2}
OPTIONS = {**SHAPE, "n_k": 9, "n_v": 9}
X = np.random.default_rng(0).normal(size=(4, 5, 3))


def target():
    return initializers.theory_attention(jax.random.key(1), **SHAPE, n_k=2, n_v=2)


def run(params, x):
    """Attention of one sequence in NumPy float64."""
    w_q, w_k, w_v, w_o = (np.asarray(w, np.float64) for w in params)
    logits = np.einsum("tm,hmk,nhk->htn", x, w_q, np.einsum("tm,hmk->thk", x, w_k))
    weights = np.exp(logits / np.sqrt(w_q.shape[-1]))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("htn,nm,hmv,hvo->to", weights, x, w_v, w_o)


def error_of(ours, theirs):
    worst = [np.linalg.norm(run(ours, x) - run(theirs, x), axis=-1).max() for x in X]
    return float(np.mean(worst))


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    source = initializers.theory_attention(jax.random.key(5, impl=ticket.IMPL), **OPTIONS)
    masks = construction.prune_attention(source, target())
    masked = jax.tree.map(lambda w, m: w * m, source, masks)
    new = ticket.create("theory", OPTIONS, 5, masks, metadata={"error": error_of(masked, target())})
    path = tmp_path_factory.mktemp("claims") / "honest.ticket.safetensors"
    ticket.save(path, new)
    return path


def test_an_honest_ticket_is_accepted(honest):
    report = ticket.verify(honest, target=target(), inputs=X)
    assert report.error == pytest.approx(report.ticket.metadata["error"], rel=1e-9)
    assert report.error > 0.01 and "recorded" in repr(report)
    by_function = ticket.verify(honest, target=lambda weights: error_of(weights, target()))
    assert by_function.error == pytest.approx(report.error, rel=1e-9)
    assert ticket.verify(honest).error is None


@pytest.mark.parametrize("factor", [0.0, 0.5, 0.99, 1.01, 2.0, float("nan")])
def test_a_wrong_claim_is_refused(honest, tmp_path, factor):
    good = ticket.load(honest)
    error = factor * good.metadata["error"]
    path = tmp_path / "wrong.ticket.safetensors"
    ticket.save(path, dataclasses.replace(good, metadata={"error": error}))
    for how in (
        {"target": target(), "inputs": X},
        {"target": lambda weights: error_of(weights, target())},
    ):
        with pytest.raises(CheckpointError, match="the ticket's error is") as caught:
            ticket.verify(path, **how)
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    assert ticket.verify(path).error is None  # whole, and that is all that was asked


def test_the_dtype_of_the_measurement_sets_the_tolerance(honest, tmp_path):
    good = ticket.load(honest)
    off = good.metadata["error"] * (1 + 1e-6)
    path = tmp_path / "off.ticket.safetensors"
    ticket.save(path, dataclasses.replace(good, metadata={"error": off}))
    ticket.verify(path, target=target(), inputs=X)  # within float32's rounding
    with pytest.raises(CheckpointError, match="as recorded"):
        ticket.verify(path, target=target(), inputs=X, tolerance=1e-9)
    metadata = {"error": off, "dtype": "float64"}
    ticket.save(path, dataclasses.replace(good, metadata=metadata), overwrite=True)
    with pytest.raises(CheckpointError, match="as recorded"):
        ticket.verify(path, target=target(), inputs=X)


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "int8", 3, None])
def test_a_file_cannot_widen_its_own_tolerance(honest, tmp_path, dtype):
    good = ticket.load(honest)
    path = tmp_path / "wide.ticket.safetensors"
    metadata = {"error": 1.01 * good.metadata["error"], "dtype": dtype}
    ticket.save(path, dataclasses.replace(good, metadata=metadata))
    with pytest.raises(CheckpointError, match="as recorded"):
        ticket.verify(path, target=target(), inputs=X)
    for error in ({"a": 1}, "much", None):
        ticket.save(path, dataclasses.replace(good, metadata={"error": error}), overwrite=True)
        with pytest.raises(CheckpointError, match="records no error"):
            ticket.verify(path, target=target(), inputs=X)


@pytest.mark.slow
def test_claims_of_transformer_blocks(tmp_path):
    options = {"num_blocks": 2, "num_heads": 1, "d": 3, "n_k": 4, "n_v": 4}
    blocks = initializers.theory_blocks(jax.random.key(2, impl=ticket.IMPL), **options)
    layers = (Linear(jnp.eye(3)), Linear(0.5 * jnp.eye(3), jnp.ones(3)))
    full = jax.tree.map(lambda w: jnp.ones(w.shape, bool), blocks)
    path = tmp_path / "blocks.ticket.safetensors"
    ticket.save(path, ticket.create("theory_blocks", options, 2, full, metadata={"error": 0.0}))
    network = tuple(Block(block, layers) for block in blocks)
    assert ticket.verify(path, target=network, inputs=0.1 * X).error == 0
    moved = (*network[:1], Block(blocks[1]._replace(w_o=-blocks[1].w_o), layers))
    with pytest.raises(CheckpointError, match="as recorded"):
        ticket.verify(path, target=moved, inputs=0.1 * X)


def test_bad_claims_are_one_line(honest, tmp_path):
    with refusals("inputs must be the sequences"):
        ticket.verify(honest, target=target())
    with refusals("tolerance must be a number"):
        ticket.verify(honest, tolerance=-1.0)
    path = tmp_path / "none.ticket.safetensors"
    ticket.save(path, dataclasses.replace(ticket.load(honest), metadata={}))
    with pytest.raises(CheckpointError, match="records no error"):
        ticket.verify(path, target=target(), inputs=X)


@pytest.mark.slow
def test_a_row_of_a_sweep_becomes_a_ticket(tmp_path):
    def trial(key, hparams):
        width, padded = hparams["width"], hparams["width_max"]
        source = initializers.theory_attention(key, **SHAPE, n_k=width, n_v=width, padded=padded)
        masks = jax.tree.map(lambda w: w > 0, source)
        return {"error": jnp.sum(source.w_q)}, {**vars(masks), "other": jnp.ones(3)}

    results = sweep.run(trial, seeds=[4, 8], grid={"width": [3, 5]}, padded=["width"])
    for index, row in enumerate(results.rows):
        options = {**SHAPE, "n_k": row["width"], "n_v": row["width"]}
        new = ticket.from_row(results, index, "theory", options, metadata={"note": "x"})
        assert new.seed == row["seed"] and new.shapes["w_o"] == (2, row["width"], 2)
        assert new.metadata == {
            "width": row["width"], "error": row["error"], "dtype": "float32", "note": "x",
        }  # fmt: skip
        for name, weights in ticket.materialize(new)._asdict().items():
            kept = np.asarray(weights) > 0
            np.testing.assert_array_equal(ticket.masks(new)[name], kept)
    with refusals("within the weights of source 'theory'"):
        ticket.from_row(results, 2, "theory", {**SHAPE, "n_k": 2, "n_v": 2})
    with refusals("masks must be named as the weights"):
        ticket.from_row(results, 0, "theory", OPTIONS, masks=lambda arrays: {"m": arrays["w_q"]})
    with refusals("source must be one of"):
        ticket.from_row(results, 0, "magic", OPTIONS)
