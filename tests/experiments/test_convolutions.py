"""Convolutional networks of the edge-popup paper: equal to PyTorch, and a benchmark that runs."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cells import cells
from flax import nnx

from slth_jax import edge_popup, supermask

KEY = jax.random.key(2, impl="threefry2x32")


def images(step):
    draw = np.random.default_rng(step)
    x = draw.normal(size=(16, 8, 8, 1)).astype(np.float32)
    return x, draw.integers(10, size=16).astype(np.int32)


@pytest.mark.parametrize("name", cells(["conv2", "conv4", "conv6"], fast=["conv2"]))
def test_masks_are_pytorchs_step_by_step(name):
    """From equal scores, by SGD with momentum; PyTorch's step follows the paper's description."""
    pytest.importorskip("torch")
    from experiments.benchmarks import convolutions, convolutions_torch

    model = convolutions.ConvNet(name, 8, 1, width=0.05, rngs=nnx.Rngs(KEY))
    weights = convolutions.named(model)
    variant = edge_popup.VARIANTS["ramanujan"]
    scores = edge_popup.init_scores(KEY, weights, variant)
    popup = convolutions_torch.EdgePopup(weights, scores, keep=0.3, learning_rate=1.0)
    loss = convolutions.loss_of_arrays(model)
    step = jax.jit(
        lambda state, batch: edge_popup.step(
            KEY, state, batch, 0.3, loss=loss, optimizer=convolutions.sgd(1.0), variant=variant
        )
    )
    state = edge_popup.start(weights, edge_popup.Trainable(scores, {}), convolutions.sgd(1.0))
    first = edge_popup.masks(None, scores, weights, 0.3, variant)
    for index in range(6):
        ours = edge_popup.masks(None, state.trainable.scores, weights, 0.3, variant)
        theirs = popup.masks()
        for place, mask in ours.items():
            assert int(mask.sum()) == supermask.num_kept(mask.size, 0.3)
            sizes = np.abs(state.trainable.scores[place])
            threshold = sizes[np.asarray(mask)].min()
            clear = np.abs(sizes - threshold) > 1e-5 * threshold  # rounding cannot swap these
            np.testing.assert_array_equal(np.asarray(mask)[clear], theirs[place][clear])
        state, metrics = step(state, images(index))
        assert float(metrics["loss"]) == pytest.approx(popup.step(images(index)), rel=1e-4)
    changed = [int(jnp.sum(ours[place] != first[place])) for place in first]
    assert sum(changed) >= 4, "training moves the masks"


def test_pooling_and_flattening_have_the_papers_shapes():
    from experiments.benchmarks import convolutions

    for name, size, inputs in (("conv2", 32, 64 * 16**2), ("conv6", 8, 256)):
        model = nnx.eval_shape(
            lambda n=name, s=size: convolutions.ConvNet(n, s, 3, width=1.0, rngs=nnx.Rngs(0))
        )
        assert [layer.kernel.shape for layer in model.dense] == [
            (inputs, 256), (256, 256), (256, 10)
        ]  # fmt: skip
    x = jax.random.normal(KEY, (2, 8, 8, 1))
    model = convolutions.ConvNet("conv2", 8, 1, width=0.05, rngs=nnx.Rngs(KEY))
    hidden = x
    for conv in model.convs:
        hidden = nnx.relu(conv(hidden))
    hidden = nnx.max_pool(hidden, (2, 2), (2, 2)).reshape(2, -1)
    for index, layer in enumerate(model.dense):
        hidden = layer(nnx.relu(hidden) if index else hidden)
    np.testing.assert_allclose(model(x), hidden, rtol=1e-5)


@pytest.mark.slow
def test_the_benchmark_writes_its_rows_and_figure(tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn")
    from experiments.benchmarks import convolutions

    tiny = convolutions.Preset(
        ("conv2", "conv4"), 0.05, steps=4, keeps=(0.5,), rates=(0.01, 0.1), seeds=2, rounds=1
    )
    monkeypatch.setitem(convolutions.PRESETS, "quick", tiny)
    monkeypatch.setattr(sys, "argv", ["convolutions", "--preset", "quick", "--out", str(tmp_path)])
    convolutions.main()
    result = json.loads((tmp_path / "convolutions.json").read_text())
    assert [(row["network"], row["method"], row["keep"]) for row in result["accuracy"]] == [
        (name, method, keep)
        for name in ("conv2", "conv4")
        for method, keep in (("edge-popup", 0.5), ("dense", 1.0), ("random", 0.5))
    ]
    assert all(len(row["values"]) == 2 and row["half"] >= 0 for row in result["accuracy"])
    assert {row["images"] for row in result["speed"]} == {8, 32}
    assert all(row["steps_per_second"] > 0 for row in result["speed"])
    assert (tmp_path / "convolutions.png").stat().st_size > 10_000
