"""Whole models at b mask bits per entry: masks, files, pieces, devices, command line."""

import json

import chex
import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from refusals import refusals

from slth_jax import cli, hide, models, storage, ticket
from slth_jax.factored import Bands, from_json, products, solve, source
from slth_jax.hide import pieces
from slth_jax.hide.targets import Targets

BANDS = Bands(4, 4, column_scales=True, others=(("in", 5), ("wte", 6)))


@pytest.fixture(scope="module")
def gpt2(models_on_disk, tmp_path_factory):
    path, tokens, _ = models_on_disk["gpt2"]
    reader = models.weights.open(path)
    spec = hide.make_spec(reader, bits=BANDS)
    return reader, spec, tokens, hide.solve(reader, spec, tmp_path_factory.mktemp("bands"))


def test_weights_times_masks_are_the_decoded_matrices(gpt2):
    reader, spec, _, path = gpt2
    opened = hide.opened(path)
    for part in spec.parts:
        mask = ticket.mask(opened.ticket, part.name)
        assert mask.shape == part.shape and mask.dtype == bool
        if part.kind == "gain":  # a diagonal, of subset sums
            target = Targets(reader, spec).product(part, 0)
            product = opened.entries(part)[0]
            np.testing.assert_allclose(product, target, atol=1e-2 * np.abs(target).max())
            np.testing.assert_array_equal(product[target == 0], 0)
            bits = opened.ticket.bits
            assert bits.num_bytes < sum(x.size for x in bits.values())
            continue
        groups = mask.reshape(part.count, part.rows, part.columns, -1)
        assert groups.shape[-1] == 2 ** {"wte": 6, "in": 5}.get(part.kind, 4)
        assert np.all(groups.sum(axis=-1) == 1)
        columns = opened.network.column_scales(part, 0)
        assert columns is not None and columns.max() == 1
        drawn = products.draw(0, part, 0, spec.rule(part), columns)
        left = products._left_rows(
            drawn.key, np.arange(part.rows), opened.network.row_scales(part, 0), part.nameless
        )
        right = products.masked_right(drawn, part)
        assert np.all((right != 0).sum(axis=1) == part.band.window)
        product = (np.float64(left) * mask[0]) @ np.float64(right)
        np.testing.assert_allclose(opened.entries(part)[0], product, atol=1e-5)
        error = np.sqrt(np.mean((product - Targets(reader, spec).product(part, 0)) ** 2))
        report = opened.ticket.metadata["parts"][part.name]["relative_error"]
        size = np.sqrt(np.mean(Targets(reader, spec).product(part, 0) ** 2))
        assert error / size == pytest.approx(report, rel=1e-2) and report < 0.4


def test_the_ticket_computes_its_target_and_is_verified(gpt2):
    reader, spec, tokens, path = gpt2
    model = hide.of_ticket(path)
    logits = hide.logits(model, tokens)
    measured = hide.measures(hide.logits(hide.of_target(reader), tokens), logits, None)
    assert measured["rms_logit_difference"] < 0.5 * measured["logit_sd"]
    report = ticket.verify(path)
    assert report.size == sum(np.prod(part.shape) for part in spec.parts)
    ones = hide.opened(path).ticket.num_kept("gain")
    assert report.num_kept == ones + sum(part.num_sums for part in spec.parts if part.band)
    params = ticket.materialize(report.ticket)
    settings = hide.model.assemble.masked_settings(spec)
    as_it_is = np.asarray(models.apply(jax.tree.map(jax.numpy.asarray, params), tokens, settings))
    np.testing.assert_allclose(as_it_is, logits, atol=1e-3 * measured["logit_sd"])
    bands = [part for part in spec.parts if part.band]
    size = sum(-(-part.columns * part.band.bits // 8) * part.rows for part in bands)
    size += -(-sum(part.rows for part in bands) // 2)
    size += -(-sum(part.columns for part in bands) // 2)
    size += sum(part.num_bytes for part in spec.parts if not part.band)
    assert sum(bits.size for bits in report.ticket.bits.values()) == size


@pytest.mark.slow
def test_pieces_shards_and_devices_change_no_bit(gpt2, tmp_path, monkeypatch):
    reader, spec, _, path = gpt2
    monkeypatch.setattr(pieces, "_SUMS", 1 << 6)
    monkeypatch.setattr(pieces, "_STEP", 8)
    with pytest.raises(hide.Unfinished):
        hide.solve(reader, spec, tmp_path, shard="1/2")
    joined = hide.solve(reader, spec, tmp_path, shard="0/2")
    first, second = (hide.opened(p).ticket for p in (path, joined))
    assert first.fingerprint == second.fingerprint
    chex.assert_trees_all_equal(dict(first.bits), dict(second.bits))
    part = next(part for part in spec.parts if part.name == "0.in")
    matrix = Targets(reader, spec).product(part, 0)
    problem = solve.Problem(
        products.draw(0, part, 0, spec.rule(part)), part, spec.construction, 1.0, 16
    )
    bits = []
    for count in (1, 4):
        devices = jax.local_devices()[:count]
        mesh = jax.make_mesh((count,), ("rows",), (AxisType.Auto,), devices=devices)
        bits.append(solve.rows(problem, matrix, 0, mesh).bits)
    np.testing.assert_array_equal(*bits)


def test_older_specs_have_no_bands_and_newer_ones_return(gpt2):
    reader, spec, _, _ = gpt2
    fields = json.loads(json.dumps(storage.plain(spec.to_json())))
    assert from_json(fields) == spec
    # Bands of the first version had no scales of columns, and a band for the last gain.
    first = {n: v for n, v in fields["bands"].items() if n in ("bits", "states", "weights")}
    bands = from_json(fields | {"bands": {**first, "row_scales": True, "others": []}}).bands
    assert bands is not None and not bands.column_scales and not bands.diagonal_gain
    older = storage.plain(hide.make_spec(reader, samples=8).to_json())
    assert older.pop("bands") is None and from_json(older).bands is None


def test_levels_follow_the_sizes_of_rows():
    sizes = np.array([1.0, 0.5, 0.26, 0.01, 0.0])
    levels = solve.levels_of(sizes)
    scales = solve.LEVELS[levels]
    np.testing.assert_allclose(scales[:4], sizes[:4], rtol=0.25)
    assert levels[0] == 0 and levels[4] == 15
    expected = [levels[0] << 4 | levels[1], levels[2] << 4 | levels[3], 0xF0]
    np.testing.assert_array_equal(source.packed_levels(levels), expected)


@pytest.mark.parametrize(
    "bits, words",
    [
        (13, r"^bits must be an integer in \[1, 12\], got 13"),
        (Bands(3, others=(("head", 4),)), "a kind of matrix must be one of 'in', "),
        (Bands(3, others=(("gain", 4),)), "a kind of matrix must be one of 'in', "),
    ],
)
def test_bad_bits_are_refused(gpt2, bits, words):
    with refusals(words):
        hide.make_spec(gpt2[0], bits=bits)
    with refusals("^construction must be absent if bits are given, got proof"):
        hide.make_spec(gpt2[0], bits=4, construction="proof")


@pytest.mark.slow
def test_hide_at_few_bits_from_the_command_line(models_on_disk, tmp_path, capsys):
    path, _, _ = models_on_disk["plain_llama"]
    arguments = ["hide", str(path), "--quiet", "--out", str(tmp_path)]
    assert cli.main([*arguments, "--bits", "3,wte=x"]) == 2
    assert "--bits must be B or B,KIND=B, got '3,wte=x'" in capsys.readouterr().err
    bands = [
        "--bits",
        "3,wte=5",
        "--states",
        "3",
        "--source-weights",
        "uniform",
        "--scales",
        "matrix",
    ]
    assert cli.main([*arguments, *bands]) == 0
    assert "entries at 3 bits" in capsys.readouterr().out
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["bands"]["others"] == [["wte", 5]] and summary["numbers"]["row_scales"] == 0
    assert cli.main(["ticket", "show", str(tmp_path / "ticket.safetensors")]) == 0
    shown = capsys.readouterr().out
    assert "3 bits per 8 or 5 bits per 32 of which one is kept" in shown
    assert "bits per trained weight" in shown and "row scales" not in shown


def test_scales_of_columns_serve_columns_of_other_sizes(models_on_disk, monkeypatch):
    """A column thirty times the others, as a bias is: the other columns lose nothing."""
    reader = models.weights.open(models_on_disk["gpt2"][0])
    matrix = np.random.default_rng(0).normal(0, 1, (32, 9)).astype(np.float32)
    matrix[:, 8] *= 30
    monkeypatch.setattr(Targets, "product", lambda *_: matrix)
    errors = []
    for column_scales in (False, True):
        spec = hide.make_spec(reader, bits=Bands(5, 5, column_scales=column_scales))
        part = next(part for part in spec.parts if part.name == "0.in")
        piece = pieces.Piece(part, 0, part.rows)
        arrays, report = pieces.compute(piece, spec, 0, Targets(reader, spec), products.mesh())
        assert ("columns" in arrays) == column_scales
        errors.append(report["squared_error"])
    assert errors[1] < 0.5 * errors[0]
