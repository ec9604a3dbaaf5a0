"""From a model to its ticket and back: exactness, resuming, shards, devices, what is refused."""

import json
import math

import jax
import numpy as np
import pytest
import safetensors.numpy
from jax.sharding import AxisType
from refusals import refusals

from slth_jax import hide, models, storage, ticket
from slth_jax.construction import rules
from slth_jax.hide import pieces, run, solver
from slth_jax.hide.targets import Targets
from slth_jax.sources import products


def solved(models_on_disk, tmp_path_factory, name, **options):
    path, tokens, _ = models_on_disk[name]
    reader = models.weights.open(path)
    seed = options.pop("seed", 0)
    made = hide.make_recipe(reader, **options)
    out = tmp_path_factory.mktemp(name)
    return reader, made, tokens, hide.solve(reader, made, out, seed=seed), out


@pytest.fixture(scope="module")
def llama(models_on_disk, tmp_path_factory):
    return solved(models_on_disk, tmp_path_factory, "llama", samples=12, construction="reach")


@pytest.mark.parametrize("name", ["llama", "gpt2", "classifier"])
def test_a_ticket_computes_its_target(name, models_on_disk, tmp_path_factory):
    shift = rules.shift(2, 4, 0.5)
    options = {"samples": 14, "construction": shift}
    reader, _, tokens, path, _ = solved(models_on_disk, tmp_path_factory, name, **options)
    target, found = hide.of_target(reader), hide.of_ticket(path)
    wanted, got = hide.logits(target, tokens), hide.logits(found, tokens)
    measured = hide.measures(wanted, got, None)
    assert 0 < measured["mean_logit_difference"] < 0.05 * measured["logit_sd"]
    # The masked source as it is: weights times masks, nothing merged.
    opened = hide.opened(path).ticket
    params = ticket.materialize(opened)
    from slth_jax.sources import decoder

    _, settings = decoder.materialize(opened.options, opened.seed, opened.bits)
    as_it_is = np.asarray(models.apply(params, tokens, settings))
    np.testing.assert_allclose(as_it_is, got, atol=2e-4 * measured["logit_sd"] + 2e-4)


def test_every_mask_is_the_best_of_its_samples(llama):
    """Recomputed in float64 from the factors, entry by entry, for one small product."""
    reader, made, _, path, _ = llama
    part = next(part for part in made.parts if part.name == "0.out")
    opened = hide.opened(path)
    scale = opened.scales[part.name][0]
    one = products.product(products.part_key(0, part, made), part, 0, made.construction)
    left = products.masked_left(one, part, scale, opened.ticket.bits[part.name]).astype(np.float64)
    product = left @ products.masked_right(one, part).astype(np.float64)
    target = Targets(reader, made).product(part, 0)
    told = opened.ticket.metadata["parts"][part.name]
    assert abs(product - target).max() == pytest.approx(told["largest_error"], rel=1e-3, abs=1e-6)
    np.testing.assert_allclose(opened.entries(part.name)[0], product, atol=1e-6)


def test_a_stopped_run_goes_on_to_the_same_bytes(llama, tmp_path, monkeypatch):
    reader, made, _, path, _ = llama
    monkeypatch.setattr(pieces, "_SUMS", 1 << 9)  # many pieces; the ticket is the same
    monkeypatch.setattr(pieces, "_STEP", 16)
    count = 0

    def stop(done, total):
        nonlocal count
        count += 1
        if count == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hide.solve(reader, made, tmp_path, progress=stop)
    store = tmp_path / "parts"
    assert len(list(store.iterdir())) == 5 and not (tmp_path / "ticket.safetensors").exists()
    damaged = sorted(store.iterdir())[0]
    damaged.write_bytes(damaged.read_bytes()[:-3])
    computed = []
    compute = pieces.compute
    monkeypatch.setattr(
        pieces, "compute", lambda piece, *a: computed.append(piece) or compute(piece, *a)
    )
    again = hide.solve(reader, made, tmp_path)
    assert len(computed) == len(pieces.cut(made)) - 4
    one, other = (safetensors.numpy.load_file(p) for p in (path, again))
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])
    hide.clean(tmp_path)
    assert not store.exists() and hide.solve(reader, made, tmp_path) == again


def test_shards_join_to_the_same_ticket(llama, tmp_path):
    reader, made, _, path, _ = llama
    with pytest.raises(hide.Unfinished, match=r"shard 0/2 is done; \d+ of \d+ pieces"):
        hide.solve(reader, made, tmp_path, shard="0/2")
    joined = hide.solve(reader, made, tmp_path, shard="1/2")
    one, other = (hide.opened(p).ticket for p in (path, joined))
    assert one.fingerprint == other.fingerprint
    for name in one.shapes:
        np.testing.assert_array_equal(one.bits[name], other.bits[name])


def test_masks_do_not_depend_on_the_number_of_devices(llama):
    reader, made, _, _, _ = llama
    part = next(part for part in made.parts if part.name == "0.qk")
    matrix = Targets(reader, made).product(part, 0)
    one = products.product(products.part_key(0, part, made), part, 0, made.construction)
    found = []
    for count in (1, 4):
        mesh = jax.make_mesh(
            (count,), ("rows",), (AxisType.Auto,), devices=jax.local_devices()[:count]
        )
        found.append(solver.rows(one, part, made.construction, matrix, 0, 1.0, 12, mesh).bits)
    np.testing.assert_array_equal(*found)


def test_kept_parts_stay_the_targets(models_on_disk, tmp_path_factory):
    options = {"samples": 8, "construction": "reach", "keep": ("embedding", "layers")}
    reader, made, _, path, _ = solved(models_on_disk, tmp_path_factory, "plain_llama", **options)
    opened = hide.opened(path)
    np.testing.assert_array_equal(opened.entries("wte")[0], reader.ends()["wte"])
    numbers = opened.ticket.metadata["numbers"]
    assert numbers["kept"] == 23 * 8 + 3 * 8 * 6
    assert numbers["scales"] == sum(part.count for part in made.parts)
    with pytest.raises(storage.CheckpointError, match="random in all parts"):
        ticket.materialize(opened.ticket)


def test_relu_form_meets_both_signs(models_on_disk, tmp_path_factory):
    shift = rules.shift(2, 4, 0.5)
    options = {"samples": 14, "form": "relu", "seed": 3, "construction": shift}
    reader, made, tokens, path, _ = solved(
        models_on_disk, tmp_path_factory, "plain_llama", **options
    )
    assert [part.relu for part in made.parts] == [True, False, False, True, True, True, True]
    opened = hide.opened(path).ticket
    from slth_jax.sources import decoder

    params, settings = decoder.materialize(opened.options, opened.seed, opened.bits)
    wanted = hide.logits(hide.of_target(reader), tokens)
    got = np.asarray(models.apply(params, tokens, settings))
    assert np.abs(got - wanted).mean() < 0.05 * wanted.std()


def test_another_run_and_a_bad_one_are_refused(llama, tmp_path, monkeypatch):
    reader, made, _, _, out = llama
    with pytest.raises(storage.CheckpointError, match=r"another run: seed is 0 there and 1 here"):
        hide.solve(reader, made, out, seed=1)
    # What fails before its first result binds nobody.
    monkeypatch.setattr(pieces, "compute", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        hide.solve(reader, made, tmp_path)
    assert not (tmp_path / "config.json").exists()
    monkeypatch.setattr(run.storage, "check_room", lambda *_: run.storage.check(tmp_path / "none"))
    with pytest.raises(storage.CheckpointError):
        hide.solve(reader, made, tmp_path)
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
            "construction must be a rule that deals units without the target, got fitted",
        ),
    ):
        with refusals(words):
            hide.make_recipe(reader, **options)
    with pytest.raises(
        ValueError, match="construction must be one of proof, reach, shift, fitted or"
    ):
        rules.parse("shift:4")


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
