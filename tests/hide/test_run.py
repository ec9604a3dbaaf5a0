"""From a model to its ticket and back: exactness, resuming, shards, devices, refusals."""

import dataclasses
import json
import math
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from cells import cells
from jax.sharding import AxisType
from refusals import refusals

from slth_jax import hide, models, storage, ticket
from slth_jax.construction import rules
from slth_jax.factored import from_json, products, solve, source
from slth_jax.hide import compare, pieces, run
from slth_jax.hide.targets import Targets


def solved(models_on_disk, tmp_path_factory, name, **options):
    path, tokens, _ = models_on_disk[name]
    reader = models.weights.open(path)
    seed = options.pop("seed", 0)
    spec = hide.make_spec(reader, **options)
    out = tmp_path_factory.mktemp(name)
    return reader, spec, tokens, hide.solve(reader, spec, out, seed=seed), out


@pytest.fixture(scope="module")
def llama(models_on_disk, tmp_path_factory):
    options = {"samples": 12, "construction": "reach", "attention": "merged"}
    return solved(models_on_disk, tmp_path_factory, "llama", **options)


@pytest.mark.parametrize("attention", cells(["merged", "factored"], fast=["factored"]))
@pytest.mark.parametrize(
    "name", cells(["llama", "gpt2", "classifier", "bert"], fast=["gpt2", "bert"])
)
def test_a_ticket_computes_its_target(name, attention, models_on_disk, tmp_path_factory):
    shift = rules.shift(2, 4, 0.5)
    options = {"samples": 14, "construction": shift, "attention": attention}
    reader, _, tokens, path, _ = solved(models_on_disk, tmp_path_factory, name, **options)
    target, model = hide.of_target(reader), hide.of_ticket(path)
    expected, logits = hide.logits(target, tokens), hide.logits(model, tokens)
    measured = hide.measures(expected, logits, None)
    assert 0 < measured["mean_logit_difference"] < 0.05 * measured["logit_sd"]
    # The masked source as it is: weights times masks, nothing merged.
    opened = hide.opened(path)
    params, settings = source.materialize(opened.network, opened.ticket.bits)
    chex.assert_trees_all_equal(params, ticket.materialize(opened.ticket))
    as_it_is = np.asarray(models.apply(jax.tree.map(jnp.asarray, params), tokens, settings))
    np.testing.assert_allclose(as_it_is, logits, atol=2e-4 * measured["logit_sd"] + 2e-4)


@pytest.mark.slow
def test_sentence_embeddings_of_a_ticket(models_on_disk, tmp_path_factory, monkeypatch):
    """Masked, padded, pooled: close to the target's, and not changed by padding."""
    options = {"samples": 14, "construction": rules.shift(2, 4, 0.5), "attention": "factored"}
    reader, _, tokens, path, _ = solved(models_on_disk, tmp_path_factory, "bert", **options)
    kept = np.arange(tokens.shape[1])[None] < np.array([16, 5, 9])[:, None]
    target = np.asarray(models.embeddings(reader.load(), tokens, reader.settings, kept=kept))
    model = hide.of_ticket(path)
    ours = hide.embeddings(model, tokens, kept=kept)
    assert ((target * ours).sum(axis=1) > 0.999).all()
    alone = hide.embeddings(model, tokens[1:2, :5])
    np.testing.assert_allclose(alone, ours[1:2], atol=1e-5)
    monkeypatch.setattr(compare, "_LENGTHS", 4)  # texts of 16, 5 and 9 tokens are three groups
    np.testing.assert_allclose(hide.embeddings(model, tokens, kept=kept), ours, atol=1e-5)
    with refusals("settings must be of an encoder"):
        hide.embeddings(model._replace(settings=models.preset("nano").settings), tokens)


@pytest.mark.slow
def test_every_mask_is_the_best_of_its_samples(llama):
    """Recomputed in float64 from the factors, entry by entry, for one small product."""
    reader, spec, _, path, _ = llama
    part = next(part for part in spec.parts if part.name == "0.out")
    opened = hide.opened(path)
    scale = opened.network.scales[part.name][0]
    drawn = products.draw(0, part, 0, spec.construction)
    scales = np.full(part.rows, scale, np.float32)
    left = products.masked_left(
        drawn, part, np.arange(part.rows), scales, opened.ticket.bits[part.name]
    ).astype(np.float64)
    product = left @ products.masked_right(drawn, part).astype(np.float64)
    target = Targets(reader, spec).product(part, 0)
    report = opened.ticket.metadata["parts"][part.name]
    assert abs(product - target).max() == pytest.approx(report["largest_error"], rel=1e-3, abs=1e-6)
    np.testing.assert_allclose(opened.entries(part)[0], product, atol=1e-6)


def test_a_stopped_run_goes_on_to_the_same_bytes(llama, tmp_path, monkeypatch):
    reader, spec, _, path, _ = llama
    monkeypatch.setattr(pieces, "_SUMS", 1 << 9)  # many pieces; the ticket is the same
    monkeypatch.setattr(pieces, "_STEP", 16)
    count = 0

    def stop(done, total):
        nonlocal count
        count += 1
        if count == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hide.solve(reader, spec, tmp_path, progress=stop)
    store = tmp_path / "parts"
    assert len(list(store.iterdir())) == 5 and not (tmp_path / "ticket.safetensors").exists()
    damaged = sorted(store.iterdir())[0]
    damaged.write_bytes(damaged.read_bytes()[:-3])
    computed = []
    compute = pieces.compute
    monkeypatch.setattr(
        pieces, "compute", lambda piece, *a: computed.append(piece) or compute(piece, *a)
    )
    again = hide.solve(reader, spec, tmp_path)
    assert len(computed) == len(pieces.cut(spec)) - 4
    first, second = (safetensors.numpy.load_file(p) for p in (path, again))
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
    hide.clean(tmp_path)
    assert not store.exists() and hide.solve(reader, spec, tmp_path) == again


def test_shards_join_to_the_same_ticket(llama, tmp_path):
    reader, spec, _, path, _ = llama
    with pytest.raises(hide.Unfinished, match=r"shard 0/2 is done; \d+ of \d+ pieces"):
        hide.solve(reader, spec, tmp_path, shard="0/2")
    joined = hide.solve(reader, spec, tmp_path, shard="1/2")
    first, second = (hide.opened(p).ticket for p in (path, joined))
    assert first.fingerprint == second.fingerprint
    for name in first.shapes:
        np.testing.assert_array_equal(first.bits[name], second.bits[name])


def test_masks_do_not_depend_on_the_number_of_devices(llama):
    reader, spec, _, _, _ = llama
    part = next(part for part in spec.parts if part.name == "0.qk")
    matrix = Targets(reader, spec).product(part, 0)
    problem = solve.Problem(
        products.draw(0, part, 0, spec.construction), part, spec.construction, 1.0, 12
    )
    bits = []
    for count in (1, 4):
        mesh = jax.make_mesh(
            (count,), ("rows",), (AxisType.Auto,), devices=jax.local_devices()[:count]
        )
        bits.append(solve.rows(problem, matrix, 0, mesh).bits)
    np.testing.assert_array_equal(*bits)


@pytest.mark.slow
def test_kept_parts_stay_the_targets(models_on_disk, tmp_path_factory):
    options = {"samples": 8, "construction": "reach", "keep": ("embedding", "layers")}
    reader, spec, _, path, _ = solved(models_on_disk, tmp_path_factory, "plain_llama", **options)
    opened = hide.opened(path)
    assert ticket.verify(path).size == opened.ticket.size
    np.testing.assert_array_equal(opened.entries(spec.every_part[0])[0], reader.ends()["wte"])
    numbers = opened.ticket.metadata["numbers"]
    assert numbers["kept"] == 23 * 8 + 3 * 8 * 6
    assert numbers["scales"] == sum(part.count for part in spec.parts)
    with pytest.raises(storage.CheckpointError, match="random in all parts"):
        ticket.materialize(opened.ticket)


@pytest.mark.slow
def test_relu_form_meets_both_signs(models_on_disk, tmp_path_factory):
    shift = rules.shift(2, 4, 0.5)
    options = {
        "samples": 14,
        "form": "relu",
        "seed": 3,
        "construction": shift,
        "attention": "merged",
    }
    reader, spec, tokens, path, _ = solved(
        models_on_disk, tmp_path_factory, "plain_llama", **options
    )
    assert [part.relu for part in spec.parts] == [True, False, False, True, True, True, True]
    opened = hide.opened(path)
    params, settings = source.materialize(opened.network, opened.ticket.bits)
    expected = hide.logits(hide.of_target(reader), tokens)
    logits = np.asarray(models.apply(jax.tree.map(jnp.asarray, params), tokens, settings))
    assert np.abs(logits - expected).mean() < 0.05 * expected.std()


def test_another_run_and_a_bad_one_are_refused(llama, tmp_path, monkeypatch):
    reader, spec, _, _, out = llama
    with pytest.raises(storage.CheckpointError, match=r"another run: seed is 0 there and 1 here"):
        hide.solve(reader, spec, out, seed=1)
    # A run that fails before its first result leaves the folder free.
    monkeypatch.setattr(pieces, "compute", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        hide.solve(reader, spec, tmp_path)
    assert not (tmp_path / "config.json").exists()
    monkeypatch.setattr(run.storage, "check_room", lambda *_: run.storage.check(tmp_path / "none"))
    with pytest.raises(storage.CheckpointError):
        hide.solve(reader, spec, tmp_path)
    for options, words in (
        ({"samples": 1}, r"samples must be an integer in \[2, 64\], got 1"),
        ({"keep": ("head",)}, "keep must be one of 'embedding', "),
        ({"form": "tanh"}, "form must be one of 'linear', 'relu', got 'tanh'"),
        (
            {"construction": "best"},
            "construction must be one of 'proof', 'reach', 'shift', 'fitted'",
        ),
        (
            {"construction": "fitted"},
            "a rule of subset sums that assigns without the target, got fitted",
        ),
    ):
        with refusals(words):
            hide.make_spec(reader, **options)
    with pytest.raises(
        ValueError, match="construction must be one of proof, reach, shift, fitted, band or"
    ):
        rules.parse("shift:4")


def test_no_weight_of_a_damaged_ticket_is_used(llama, tmp_path):
    """A flipped mask bit, another source, another seed: refused before the first weight."""
    _, _, _, path, _ = llama
    opened = hide.opened(path)
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    bad = tmp_path / "ticket.safetensors"
    bad.write_bytes(data)
    for use in (hide.opened, hide.of_ticket):
        with pytest.raises(storage.Damaged, match="checksum of its masks"):
            use(bad)
    tensors = {
        name: ticket.Tensor(bits.size, lambda bits=bits: (bits,))
        for name, bits in opened.ticket.bits.items()
    }
    scales = opened.ticket.options["scales"]
    for changes, words in (
        ({"seed": 1}, "generates other weights here"),
        ({"fingerprint": "0" * 64}, "generates other weights here"),
        ({"options": {**opened.ticket.options, "samples": 13}}, "spec is refused: masks '0.gate'"),
        ({"options": {**opened.ticket.options, "keep": ["layers"]}}, "spec is refused: masks"),
        ({"options": {**opened.ticket.options, "scales": {**scales, "wte": []}}}, "scales 'wte'"),
        ({"options": {**opened.ticket.options, "settings": 3}}, "spec is refused"),
        ({"options": {}}, "spec is refused: 'scales'"),
    ):
        wrong = dataclasses.replace(opened.ticket, **changes)
        ticket.write(bad, wrong, tensors)
        with pytest.raises(storage.CheckpointError, match=words) as caught:
            hide.of_ticket(bad)
        assert "\n" not in str(caught.value)
    settings = {**opened.ticket.options["settings"], "num_blocks": 10**9}
    wrong = dataclasses.replace(
        opened.ticket, options={**opened.ticket.options, "settings": settings}
    )
    ticket.write(bad, wrong, tensors)
    with pytest.raises(storage.CheckpointError, match="num_blocks must be at most"):
        hide.opened(bad)


def test_a_folder_with_a_damaged_ticket_keeps_its_pieces(llama, tmp_path):
    reader, spec, _, path, out = llama
    folder = tmp_path / "run"
    shutil.copytree(out, folder)
    data = path.read_bytes()
    (folder / path.name).write_bytes(data[:-5] + bytes([data[-5] ^ 1]) + data[-4:])
    for use in (lambda: hide.solve(reader, spec, folder), lambda: hide.clean(folder)):
        with pytest.raises(storage.Damaged, match="checksum of its masks"):
            use()
    assert any((folder / "parts").iterdir())


def test_a_damaged_ticket_is_noticed(llama, tmp_path):
    _, _, _, path, _ = llama
    assert ticket.verify(path).size == sum(map(math.prod, hide.opened(path).ticket.shapes.values()))
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(data)
    with pytest.raises(storage.Damaged, match="checksum of its masks"):
        ticket.verify(bad)
    bad.write_bytes(data[: len(data) // 2])
    with pytest.raises(storage.Damaged, match="no whole ticket"):
        hide.opened(bad)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert all(entry.get("dtype", "U8") == "U8" for entry in header.values())


@pytest.mark.slow
def test_norms_stay_exact_beside_bands(models_on_disk, tmp_path_factory):
    """In a post-norm model at few bits, the norms' maps are subset sums with exact zeros."""
    reader, spec, tokens, path, _ = solved(models_on_disk, tmp_path_factory, "bert", bits=8)
    bands = {part.name: part.band is not None for part in spec.parts}
    assert not bands["ln_e"] and not bands["0.ln_1"] and bands["0.q"] and bands["wtt"]
    opened = hide.opened(path)
    part = next(part for part in spec.parts if part.name == "1.ln_2")
    matrix, target = opened.entries(part)[0], Targets(reader, spec).product(part, 0)
    assert not matrix[target == 0].any()
    model = hide.of_ticket(opened)
    ours, theirs = (hide.embeddings(m, tokens) for m in (hide.of_target(reader), model))
    assert ((ours * theirs).sum(axis=1) > 0.98).all()
    params, settings = source.materialize(opened.network, opened.ticket.bits)
    as_it_is = np.asarray(models.apply(jax.tree.map(jnp.asarray, params), tokens, settings))
    np.testing.assert_allclose(as_it_is, hide.logits(model, tokens), atol=1e-3)


@pytest.mark.slow
def test_each_row_has_a_scale_that_the_ticket_names(models_on_disk, tmp_path_factory):
    """Recomputed from the ticket alone, merged and as it is; pieces and shards change no bit."""
    options = {"samples": 10, "construction": rules.shift(2, 4, 0.5), "scales": "rows"}
    reader, spec, tokens, path, _ = solved(models_on_disk, tmp_path_factory, "gpt2", **options)
    assert spec.scaling == "rows" and from_json(spec.to_json()) == spec
    opened = hide.opened(path)
    matrices = Targets(reader, spec)
    for part in spec.parts:
        report = opened.ticket.metadata["parts"][part.name]
        target = np.stack([matrices.product(part, g) for g in range(part.count)])
        error = np.linalg.norm(opened.entries(part) - target) / np.linalg.norm(target)
        assert error == pytest.approx(report["relative_error"], rel=1e-3)
    levels = np.concatenate([x.ravel() for x in opened.network.levels.values()])
    assert levels.size == sum(part.count * part.rows for part in spec.parts)
    assert np.unique(levels).size > 3
    params, settings = source.materialize(opened.network, opened.ticket.bits)
    as_it_is = np.asarray(models.apply(jax.tree.map(jnp.asarray, params), tokens, settings))
    np.testing.assert_allclose(as_it_is, hide.logits(hide.of_ticket(opened), tokens), atol=1e-3)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param("gpt2", {"samples": 10, "scales": "rows"}, marks=pytest.mark.slow),
        pytest.param(
            "plain_llama",
            {"samples": 8, "form": "relu", "attention": "merged"},
            marks=pytest.mark.slow,
        ),
        pytest.param("plain_llama", {"bits": 2}, marks=pytest.mark.slow),
    ],
)
def test_the_entry_with_the_largest_error_is_named(
    name, options, models_on_disk, tmp_path_factory, monkeypatch
):
    monkeypatch.setattr(pieces, "_SUMS", 1 << 9)  # products of several pieces
    monkeypatch.setattr(pieces, "_STEP", 16)
    reader, spec, _, path, _ = solved(models_on_disk, tmp_path_factory, name, **options)
    opened, matrices = hide.opened(path), Targets(reader, spec)
    errors, sizes = {}, {}
    for part in spec.parts:
        target = np.stack([matrices.product(part, g) for g in range(part.count)])
        size = np.sqrt(np.mean(np.square(target), axis=(1, 2), keepdims=True))
        errors[part.name] = np.abs(opened.entries(part) - target) / size
        sizes[part.name] = np.abs(target) / size
    worst = opened.ticket.metadata["worst_entry"]
    error = errors[worst["matrix"]]
    place = worst["product"], worst["row"], worst["column"]
    assert worst["relative_error"] > 0.999 * max(x.max() for x in errors.values())
    if spec.form == "linear":  # across a ReLU an entry has a second sum, for negative inputs
        assert worst["relative_error"] == pytest.approx(error[place], rel=1e-3)
    assert worst["relative_size"] == pytest.approx(sizes[worst["matrix"]][place], rel=1e-3)
    assert worst["block"] == next(p.block for p in spec.parts if p.name == worst["matrix"])


@pytest.fixture(scope="module")
def large_biases(tmp_path_factory):
    """Return the folders of a random Qwen2 with and without key biases of 100.

    The biases are those of slowly turning coordinates: their part of a logit is nearly the same
    for all keys, as in models that were trained with such biases.
    """
    import torch
    import transformers

    folders = []
    for size in (0, 100):
        torch.manual_seed(0)
        config = transformers.Qwen2Config(
            vocab_size=23, hidden_size=16, intermediate_size=12, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=16,
            tie_word_embeddings=False, bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        model = transformers.Qwen2ForCausalLM(config).eval()
        with torch.no_grad():
            for name, array in model.named_parameters():
                if array.ndim > 1:
                    array.normal_(std=1 if "embed" in name else 0.25)
            for layer in model.model.layers:
                layer.self_attn.k_proj.bias[[2, 3, 6, 7]] = size * torch.tensor([1.0, -1, -1, 1])
        folders.append(tmp_path_factory.mktemp("qwen2"))
        model.save_pretrained(folders[-1])
    return folders


def test_keys_with_large_biases_have_more_samples(large_biases):
    plain, large = map(models.weights.open, large_biases)
    spec = hide.make_spec(large, samples=12)
    assert hide.make_spec(plain, samples=12).finer == ()
    assert [name for name, _ in spec.finer] == ["0.k", "1.k"]
    parts = {part.name: part for part in spec.parts}
    for name, samples in spec.finer:
        assert 12 < samples <= 17
        assert parts[name].units == samples * parts[name].columns // 8 * 8
    assert parts["0.q"].units == 12 * parts["0.q"].columns // 8 * 8
    assert from_json(json.loads(json.dumps(spec.to_json()))) == spec
    older = {name: value for name, value in spec.to_json().items() if name != "finer"}
    assert from_json(older) == dataclasses.replace(spec, finer=())
    # Without rotary positions the bias has no effect, and merged attention has no such matrix.
    assert hide.make_spec(large, samples=12, attention="merged").finer == ()
    assert hide.make_spec(large, bits=4).finer == ()
    for finer in ((("2.k", 14),), (("0.k", 65),), (("0.k", 2.5),)):
        with refusals("finer must be|the samples of 0.k must be"):
            dataclasses.replace(spec, finer=finer)


@pytest.mark.slow
def test_large_key_biases_cost_less_than_twice_the_error(large_biases, tmp_path):
    tokens = np.random.default_rng(0).integers(0, 23, (4, 16))
    errors = []
    for i, folder in enumerate(large_biases):
        reader = models.weights.open(folder)
        spec = hide.make_spec(reader, samples=12)
        for j, trial in enumerate((spec, dataclasses.replace(spec, finer=()))):
            ours = hide.logits(hide.of_target(reader), tokens)
            model = hide.of_ticket(hide.solve(reader, trial, tmp_path / f"{i}{j}"))
            measured = hide.measures(ours, hide.logits(model, tokens), None)
            errors.append(measured["rms_logit_difference"] / measured["logit_sd"])
    without, _, with_biases, with_as_many_samples = errors
    assert with_biases < 2 * without < with_as_many_samples


@pytest.mark.slow
def test_scales_of_rows_serve_outliers(models_on_disk):
    """One entry a hundred times the others; the same masks on every number of devices."""
    reader = models.weights.open(models_on_disk["gpt2"][0])
    spec = hide.make_spec(reader, samples=10)
    part = next(part for part in spec.parts if part.name == "0.in")  # 32 rows, 9 columns
    matrix = np.random.default_rng(0).normal(0, 1, (part.rows, part.columns)).astype(np.float32)
    matrix[3, 4] = 100
    rule = rules.shift(2, 4, 0.5)
    product = products.draw(0, part, 0, rule)
    results = []
    for count in (1, 4):
        devices = jax.local_devices()[:count]
        mesh = jax.make_mesh((count,), ("rows",), (AxisType.Auto,), devices=devices)
        problem = solve.Problem(product, part, rule, 4 * 100.0, 10)
        results.append(solve.rows_with_scales(problem, matrix, 0, mesh))
    chex.assert_trees_all_equal(*results)
    masks, levels = results[0]
    coarse = solve.rows(problem._replace(scale=90.0), matrix, 0, mesh)
    ours, theirs = (np.delete(x.squared_error, 3).sum() for x in (masks, coarse))
    assert ours < 0.01 * theirs
    assert levels[3] < np.delete(levels, 3).min()
