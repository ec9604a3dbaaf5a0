"""Archives of TransformerLens: read as its network computes them, or refused by name."""

import random

import numpy as np
import pytest
from refusals import refusals

from experiments.networks.archives import BASE, TABLE, TOKENS, refused_keys, write
from experiments.networks.transformer_lens import arrays_of, reference
from slth_jax import models, storage


def agree(path, config, arrays):
    reader = models.weights.open(path)
    reader.check_entries()
    logits = models.apply(reader.load(), TOKENS, reader.settings)
    np.testing.assert_allclose(logits, reference(config, arrays, TOKENS), atol=1e-4)


@pytest.mark.parametrize("number", range(12))
def test_random_configurations_are_read_as_their_maker_reads_them_or_refused(number, tmp_path):
    rng = random.Random(number)
    changes = {}
    for key in rng.sample(sorted(TABLE), k=9):
        supported, others = TABLE[key]
        if number % 2 and others and rng.random() < 0.25:
            changes[key] = rng.choice(others)
        elif supported:
            changes[key] = rng.choice(supported)
    config = BASE | changes
    refused = refused_keys(config)
    plain = config | {key: TABLE[key][0][0] for key in refused if TABLE[key][0]}
    arrays = arrays_of(plain)
    path = write(tmp_path, config, arrays)
    if refused:
        with refusals("must be") as caught:
            models.weights.open(path)
        assert any(key in str(caught.value) for key in refused)
    else:
        agree(path, config, arrays)


def test_arrays_in_foreign_byte_order_are_read(tmp_path):
    arrays = arrays_of(BASE)
    foreign = {n: v if v.dtype == bool else np.asarray(v, ">f4") for n, v in arrays.items()}
    agree(write(tmp_path, BASE, foreign), BASE, arrays)


def test_an_archive_alone_does_not_determine_its_network(tmp_path):
    arrays = arrays_of(BASE)
    path = write(tmp_path, BASE, arrays)
    (tmp_path / "net.json").unlink()
    with refusals(r"the configuration net\.json must be beside net\.npz"):
        models.weights.open(path)
    assert models.weights.open(path, config=BASE).settings.norm == "layer"


def with_extra(arrays):
    arrays["blocks.0.attn.q_norm.w"] = np.ones(4, np.float32)


def with_text(arrays):
    arrays["embed.W_E"] = np.full(arrays["embed.W_E"].shape, "x")


def with_another_shape(arrays):
    arrays["blocks.1.mlp.W_out"] = arrays["blocks.1.mlp.W_out"].T


def without_a_norm(arrays):
    del arrays["blocks.1.ln2.w"]


@pytest.mark.parametrize(
    "change, line",
    [
        (with_extra, "got also 'blocks.0.attn.q_norm.w'"),
        (with_text, "'embed.W_E'.* must be floating-point, got dtype <U1"),
        (with_another_shape, r"'blocks.1.mlp.W_out'.* must be of shape \(10, 8\)"),
        (without_a_norm, "an archive with 'blocks.1.ln2.w'"),
    ],
)
def test_other_arrays_are_refused_by_name(change, line, tmp_path):
    arrays = arrays_of(BASE)
    change(arrays)
    with refusals(line):
        models.weights.open(write(tmp_path, BASE, arrays))


def test_sizes_are_believed_only_if_the_arrays_have_them(tmp_path):
    for name in ("n_layers", "d_model", "d_head", "d_mlp", "d_vocab"):
        path = write(tmp_path, BASE | {name: 10**12}, arrays_of(BASE))
        with refusals(f"{name} must be .* got 1000000000000"):
            models.weights.open(path)
    with pytest.raises(storage.CheckpointError):
        (tmp_path / "net.npz").write_bytes(b"PK\x05\x06 no archive")
        models.weights.open(tmp_path / "net.npz")
