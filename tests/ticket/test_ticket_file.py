"""A ticket's file against itself damaged in every way, and against masks applied by hand."""

import dataclasses
import hashlib
import json
import os
import re
import zlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from refusals import refusals

from slth_jax import cli, initializers, storage, ticket
from slth_jax.cli import outcome
from slth_jax.storage import CheckpointError, Damaged
from slth_jax.ticket import Source, Ticket

OPTIONS = {"num_heads": 2, "d_in": 2, "d_out": 1, "n_k": 5, "n_v": 3}
SEED = 7


def _source():
    return initializers.theory_attention(jax.random.key(SEED, impl="threefry2x32"), **OPTIONS)


def _masks(keep=0.3):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda w: jnp.asarray(rng.random(w.shape) < keep), _source())


def _ticket(**changes):
    new = ticket.create("theory", OPTIONS, SEED, _masks(), metadata={"error": np.float32(0.125)})
    return dataclasses.replace(new, **changes)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "one.ticket.safetensors"
    ticket.save(path, _ticket())
    return path


def test_materialize_is_source_times_masks(path):
    expected = jax.tree.map(lambda w, m: np.asarray(w) * np.asarray(m), _source(), _masks())
    weights = ticket.materialize(ticket.load(path))
    assert type(weights) is type(_source())
    chex.assert_trees_all_equal(weights, expected)
    loaded = ticket.load(path)
    for name, mask in ticket.masks(loaded).items():
        np.testing.assert_array_equal(mask, getattr(_masks(), name))
    assert loaded.metadata == {"error": 0.125}


def test_verify_counts_what_is_kept(path):
    report = ticket.verify(path)
    leaves = jax.tree.leaves(_masks())
    assert report.size == sum(leaf.size for leaf in leaves)
    assert report.num_kept == sum(int(leaf.sum()) for leaf in leaves)
    assert 0 < report.num_kept < report.size


def test_the_file_holds_one_bit_a_connection(path):
    stored = safetensors.numpy.load_file(path)
    assert {name: bits.size for name, bits in stored.items()} == {
        name: -(-getattr(_source(), name).size // 8) for name in _source()._fields
    }


def test_a_tree_of_dicts_with_unmasked_leaves(tmp_path):
    def tiny(key, width):
        return {"layer": {"w": jax.random.normal(key, (width, 3)), "gain": jnp.ones(width)}}

    sources = {"tiny": tiny}
    mask = jnp.arange(12).reshape(4, 3) % 5 == 0
    masks = {"layer": {"w": mask, "gain": None}}
    new = ticket.create("tiny", {"width": 4}, 3, masks, sources=sources)
    path = tmp_path / "tiny.ticket.safetensors"
    ticket.save(path, new)
    masked = ticket.materialize(ticket.load(path), sources=sources)
    weights = tiny(jax.random.key(3, impl="threefry2x32"), 4)["layer"]
    np.testing.assert_array_equal(masked["layer"]["gain"], weights["gain"])
    np.testing.assert_array_equal(masked["layer"]["w"], np.where(mask, weights["w"], 0))
    with pytest.raises(CheckpointError, match="source must be one of"):
        ticket.verify(path)


def test_every_flipped_byte_is_noticed_or_harmless(path):
    good, expected = path.read_bytes(), ticket.load(path)
    harmless = 0
    for place in range(len(good)):
        for flip in (0x01, 0x80):
            path.write_bytes(good[:place] + bytes([good[place] ^ flip]) + good[place + 1 :])
            try:
                weights = ticket.load(path)
            except CheckpointError as error:
                assert "\n" not in str(error) and str(path) in str(error)
                continue
            harmless += 1
            jax.tree.map(np.testing.assert_array_equal, vars(weights), vars(expected))
    assert harmless < 0.02 * 2 * len(good)  # padding of the header


def test_every_truncation_is_noticed(path):
    good = path.read_bytes()
    for size in range(len(good)):
        path.write_bytes(good[:size])
        with pytest.raises(Damaged) as caught:
            ticket.verify(path)
        assert "\n" not in str(caught.value)
    path.write_bytes(good + b"\0")
    with pytest.raises(Damaged):
        ticket.load(path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": SEED + 1}, "generates other weights here"),
        ({"source": "magic"}, "source must be one of .* got 'magic'"),
        (
            {"options": {**OPTIONS, "n_k": 6}},
            r"mask w_[qk] has shape \(2, 2, 5\); .* has \(2, 2, 6\)",
        ),
        (
            {"options": {**OPTIONS, "n_k": 0}},
            "is refused: n_k must be an integer >= 1, got 0",
        ),
        ({"options": {**OPTIONS, "width": 3}}, "is refused: .*unexpected keyword"),
        ({"fingerprint": "0" * 64}, "generates other weights here"),
    ],
)
def test_wrong_recipes_are_one_line(tmp_path, changes, words):
    path = tmp_path / "wrong.ticket.safetensors"
    ticket.save(path, _ticket(**changes))
    with pytest.raises(CheckpointError, match=words) as caught:
        ticket.verify(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_a_format_of_the_future_is_refused(path):
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    text = json.loads(data[8 : 8 + size])["__metadata__"]["ticket"]
    new = text.partition(" ")[2].replace('"format": 1', '"format": 3')
    entry = {"ticket": f"{hashlib.sha256(new.encode()).hexdigest()} {new}"}
    path.write_bytes(safetensors.numpy.save(safetensors.numpy.load(data), metadata=entry))
    with pytest.raises(CheckpointError, match="format 3"):
        ticket.load(path)


def test_saving_is_repeatable_and_keeps_a_different_file(path):
    before = path.read_bytes()
    for _ in range(8):
        ticket.save(path, _ticket())
        assert path.read_bytes() == before
    other = _ticket(metadata={})
    with pytest.raises(CheckpointError, match="overwrite=True"):
        ticket.save(path, other)
    assert path.read_bytes() == before
    ticket.save(path, other, overwrite=True)
    assert ticket.load(path).metadata == {}


def test_bad_arguments(tmp_path):
    with refusals(re.escape("path must be NAME.ticket.safetensors")):
        ticket.save(tmp_path / "x.safetensors", _ticket())
    with refusals("source must be one of"):
        ticket.create("magic", OPTIONS, SEED, _masks())
    with refusals("seed must be an integer"):
        ticket.create("theory", OPTIONS, -1, _masks())
    with refusals("mask w_q has shape"):
        ticket.create("theory", {**OPTIONS, "n_k": 4}, SEED, _masks())
    with refusals("boolean"):
        ticket.create("theory", OPTIONS, SEED, _source())
    other = jax.tree.map(lambda w: w + 1, _source())
    with refusals("weights must be the weights of source 'theory'"):
        ticket.create("theory", OPTIONS, SEED, _masks(), weights=other)
    ticket.create("theory", OPTIONS, SEED, _masks(), weights=_source())
    with pytest.raises(CheckpointError, match="cannot read"):
        ticket.load(tmp_path / "none.ticket.safetensors")


def test_an_opened_ticket_reads_one_mask_at_a_time(path, monkeypatch):
    read = []
    real = ticket.file.Stored.__getitem__

    def counting(self, name):
        read.append(name)
        return real(self, name)

    monkeypatch.setattr(ticket.file.Stored, "__getitem__", counting)
    opened = ticket.open(path)
    assert read == [] and opened.shapes == _ticket().shapes
    np.testing.assert_array_equal(ticket.mask(opened, "w_o"), _masks().w_o)
    assert read == ["w_o"]
    with pytest.raises(KeyError):
        opened.bits["w_x"]


def test_reprs_are_short(path):
    opened = ticket.open(path)
    assert repr(opened) == (
        "Ticket(source 'theory' with seed 7 and d_in=2, d_out=1, n_k=5, n_v=3, num_heads=2: "
        "4 masks of 58 connections, error 0.125)"
    )
    report = ticket.verify(path)
    assert repr(report) == (
        f"Report({report.num_kept} of 58 connections kept ({100 * report.num_kept / 58:.1f} %))"
    )


def test_a_source_that_makes_its_own_masked_weights(tmp_path):
    """Its masks are no masks of one tree of weights, and are read and written one by one."""

    def masked(stored):
        if stored.fingerprint != "one":
            raise CheckpointError("generates other weights here")
        for name in stored.shapes:
            yield name, ticket.mask(stored, name) * np.float32(stored.options["scale"])

    sources = {"parts": Source("parts", masked=masked)}
    bits = np.packbits(np.arange(16) % 3 == 0)
    new = Ticket("parts", {"scale": 2.0}, 0, {"a": bits}, {"a": (4, 4)}, "one", {})
    path = tmp_path / "parts.ticket.safetensors"
    ticket.save(path, new)
    report = ticket.verify(path, sources=sources)
    assert (report.size, report.num_kept) == (16, 6)
    expected = (np.arange(16) % 3 == 0).reshape(4, 4) * np.float32(2)
    np.testing.assert_array_equal(ticket.materialize(new, sources=sources)["a"], expected)
    assert ticket.export(ticket.open(path), tmp_path / "a.npz", sources=sources) == 1
    np.testing.assert_array_equal(np.load(tmp_path / "a.npz")["a"], expected)
    ticket.save(path, dataclasses.replace(new, fingerprint="two"), overwrite=True)
    with pytest.raises(CheckpointError, match="other weights"):
        ticket.verify(path, sources=sources)


def test_exports_repeat_and_leave_nothing_half(path, tmp_path):
    outs = [tmp_path / "a.npz", tmp_path / "b.npz"]
    for out in outs:
        assert ticket.export(ticket.load(path), out) == 4
    assert outs[0].read_bytes() == outs[1].read_bytes()
    wrong = _ticket(seed=SEED + 1)
    with pytest.raises(CheckpointError, match="other weights"):
        ticket.export(wrong, tmp_path / "c.npz")
    with refusals(re.escape("out must be NAME.npz")):
        ticket.export(wrong, tmp_path / "c.txt")
    assert sorted(os.listdir(tmp_path)) == ["a.npz", "b.npz", "one.ticket.safetensors"]


def _written(path, tensors, changes):
    """Write a ticket's file of any tensors whose header has other fields; checksums are right."""
    header = json.loads(ticket.file._header(_ticket(), "")["ticket"].partition(" ")[2])
    packed = {name: np.asarray(bits) for name, bits in tensors.items()}
    header |= {"masks_sha256": storage.array_hash(packed), **changes}
    text = json.dumps(header)
    entry = {"ticket": f"{hashlib.sha256(text.encode()).hexdigest()} {text}"}
    path.write_bytes(safetensors.numpy.save(packed, metadata=entry))


@pytest.mark.parametrize(
    ("tensors", "changes", "words"),
    [
        ({"w_q": np.zeros(99, np.uint8)}, {}, "mask w_q has 99 bytes, not 3"),
        ({"w_q": np.zeros(1, np.uint8)}, {}, "mask w_q has 1 bytes, not 3"),
        ({"extra": np.zeros(3, np.uint8)}, {}, "'extra' belongs to no mask"),
        ({"w_q": np.zeros(3, np.int8)}, {}, "'w_q' is no row of bytes"),
        ({"w_q": np.zeros((3, 1), np.uint8)}, {}, "'w_q' is no row of bytes"),
        ({}, {"seed": 2**40}, "seed must be an integer in"),
        ({}, {"seed": "7"}, "seed must be an integer in"),
        ({}, {"metadata": [1]}, "metadata must be of type dict, got list"),
        ({}, {"shapes": {"w_k": [10**30]}}, "mask w_k has 3 bytes, not 1250"),
        ({}, {"shapes": {"w_q": 3}}, "shapes.w_q must be a list"),
        ({}, {"shapes": {"w_q": [-1]}}, "shapes.w_q must be an integer >= 0"),
        ({}, {"source": "theory\nFILE: intact"}, "names must be up to 200 letters"),
        ({}, {"options": {"a\x1b[2J": 1}}, "names must be up to 200 letters"),
        ({}, {"masks_sha256": "x"}, "masks_sha256 must be 64 hexadecimal digits"),
        ({}, {"format": "\x1b"}, r"has format '\\x1b'"),
    ],
)
def test_headers_and_tensors_outside_the_schema_are_one_line(tmp_path, tensors, changes, words):
    path = tmp_path / "crafted.ticket.safetensors"
    _written(path, {**_ticket().bits, **tensors}, changes)
    for use in (ticket.verify, ticket.open):
        with pytest.raises(CheckpointError, match=words) as caught:
            use(path)
        assert str(caught.value).isprintable()


def _sparse_ticket():
    """A ticket with one mask of few ones, and one that cannot be compressed."""
    rng = np.random.default_rng(0)
    masks = {"few": rng.random((64, 256)) < 0.15, "half": rng.random((64, 256)) < 0.5}
    bits = {name: np.packbits(mask) for name, mask in masks.items()}
    shapes = dict.fromkeys(masks, (64, 256))
    return Ticket("mine", {}, 0, bits, shapes, "", {}), masks


def test_masks_with_few_ones_are_stored_compressed(tmp_path):
    new, masks = _sparse_ticket()
    path = tmp_path / "few.ticket.safetensors"
    ticket.save(path, new)
    header = ticket.read_header(path)
    assert (header["format"], header["compressed"]) == (2, ["few"])
    read = ticket.open(path, check=True)
    share = masks["few"].mean()
    entropy = -share * np.log2(share) - (1 - share) * np.log2(1 - share)  # of a connection
    stored = safetensors.numpy.load(path.read_bytes())["few"].size
    # Huffman's code of bytes is within 2 % in the limit; its table takes some 60 bytes.
    assert 1 < stored / (entropy * 64 * 256 / 8) < 1.08
    for name, mask in masks.items():
        np.testing.assert_array_equal(ticket.mask(read, name), mask)
        assert read.num_kept(name) == mask.sum()
    assert f"{stored + 2048:,} bytes, 4,096 before compression" in ticket.describe(read)
    ticket.save(path, ticket.load(path))  # the same bytes
    older = tmp_path / "older.ticket.safetensors"  # as versions without compression wrote it
    entry = ticket.file._header(new, storage.array_hash(new.bits))
    older.write_bytes(safetensors.numpy.save(dict(new.bits), metadata=entry))
    before = older.read_bytes()
    ticket.save(older, new)
    assert older.read_bytes() == before
    with pytest.raises(CheckpointError, match="exists and differs"):
        ticket.save(older, dataclasses.replace(new, seed=1))
    # The streaming writer stores the same tensors.
    tensors = {
        name: ticket.Tensor(bits.size, lambda bits=bits: (bits[:99], bits[99:]), name == "few")
        for name, bits in new.bits.items()
    }
    ticket.write(storage.place(tmp_path / "streamed"), new, tensors)
    streamed = safetensors.numpy.load((tmp_path / "streamed").read_bytes())
    for name, bits in safetensors.numpy.load(path.read_bytes()).items():
        np.testing.assert_array_equal(streamed[name], bits)


@pytest.mark.parametrize(
    ("stream", "changes", "words"),
    [
        (zlib.compress(bytes(3000)), {}, "mask few does not have 2048 bytes"),
        (zlib.compress(bytes(2000)), {}, "mask few does not have 2048 bytes"),
        (zlib.compress(bytes(2048)) + b"x", {}, "mask few does not have 2048 bytes"),
        (zlib.compress(bytes(2048))[:-2], {}, "mask few does not have 2048 bytes"),
        (b"no stream at all", {}, "no whole ticket"),
        (b"x", {}, "mask few cannot have 2048 bytes"),
        (zlib.compress(bytes(99)), {"shapes": {"few": [2**40], "half": [64, 256]}}, "cannot have"),
        (
            zlib.compress(bytes(2048)),
            {"compressed": ["none"]},
            "compressed must be a list of masks",
        ),
        (zlib.compress(bytes(2048)), {"compressed": "few"}, "compressed must be a list of masks"),
        (zlib.compress(bytes(2048)), {}, "the checksum of its masks does not match"),
    ],
)
def test_crafted_streams_are_one_line(tmp_path, stream, changes, words):
    new, _ = _sparse_ticket()
    path = tmp_path / "crafted.ticket.safetensors"
    ticket.save(path, new)
    entry = ticket.file._header(new, storage.array_hash(new.bits), compressed=["few"])["ticket"]
    text = json.dumps(json.loads(entry.partition(" ")[2]) | changes)
    entry = {"ticket": f"{hashlib.sha256(text.encode()).hexdigest()} {text}"}
    tensors = {"few": np.frombuffer(stream, np.uint8), "half": new.bits["half"]}
    path.write_bytes(safetensors.numpy.save(tensors, metadata=entry))
    with pytest.raises(CheckpointError, match=words):
        ticket.open(path, check=True)


def test_a_source_larger_than_its_masks_is_not_drawn(tmp_path, monkeypatch):
    def wide(key, width):
        return {"w": jnp.ones(8), "table": jnp.ones((width, width))}

    new = Ticket("wide", {"width": 10**6}, 0, {"w": np.zeros(1, np.uint8)}, {"w": (8,)}, "", {})
    path = tmp_path / "wide.ticket.safetensors"
    ticket.save(path, new)
    with pytest.raises(CheckpointError, match="has 1000000000000 weights without a mask"):
        ticket.verify(path, sources={"wide": wide})
    monkeypatch.setenv("SLTH_MAX_WEIGHTS", "100")
    ticket.save(path, dataclasses.replace(new, options={"width": 10}), overwrite=True)
    with pytest.raises(CheckpointError, match="generates other weights"):  # it was drawn
        ticket.verify(path, sources={"wide": wide})


def test_text_of_a_file_reaches_no_terminal_unescaped(path, capsys):
    new = _ticket(metadata={"note": "\x1b[2Jgone\nFILE: intact", "error": "\x07"})
    text = ticket.describe(new)
    assert "\x1b" not in text and "\nFILE" not in text and "u001b" in text
    outcome.show("\x1b[31m red")
    assert capsys.readouterr().out == "\\x1b[31m red\n"
    assert outcome.refuse("a\x1bb") == 2 and "\x1b" not in capsys.readouterr().err


def test_a_damaged_ticket_is_not_exported(path, tmp_path, capsys):
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 0x80]))
    out = tmp_path / "weights.npz"
    assert cli.main(["ticket", "export", str(path), "--out", str(out)]) == 2
    assert "checksum of its masks" in capsys.readouterr().err and not out.exists()


def test_the_bits_per_trained_weight_are_shown():
    assert "size         9 bytes" in ticket.describe(_ticket())
    shown = ticket.describe(_ticket(metadata={"target_bytes": 144}))
    assert "9 bytes; target 144 bytes in float32, 2.00 bits per trained weight" in shown


MINE = """
import jax, jax.numpy as jnp
def draw(key, *, size):
    return {"w": jax.random.uniform(key, (size, 2))}
other = 3
"""


def test_a_source_of_ones_own_is_named_on_the_command_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "my_sources.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)

    def draw(key, *, size):
        return {"w": jax.random.uniform(key, (size, 2))}

    mask = {"w": jnp.ones((4, 2), bool).at[0].set(False)}
    ticket.save("mine.ticket.safetensors", ticket.create(
        "mine", {"size": 4}, SEED, mask, sources={"mine": draw}
    ))  # fmt: skip
    verify = ["ticket", "verify", "mine.ticket.safetensors"]
    assert not cli.main([*verify, "--source", "my_sources:draw"])
    assert "6 of 8 connections kept" in capsys.readouterr().out
    for place, message in {
        "my_sources": "--source must be MODULE:FUNCTION, got 'my_sources'",
        "my_sources:other": "--source must be a function of my_sources, got 'my_sources:other'",
        "no_such:draw": "--source must be in a module that can be imported, got 'no_such:draw'",
    }.items():
        assert cli.main([*verify, "--source", place]) == 2
        assert message in capsys.readouterr().err
    assert cli.main(verify) == 2
    assert "source must be one of" in capsys.readouterr().err


def test_a_ticket_of_a_whole_transformer_names_its_source(tmp_path):
    options = {"num_blocks": 1, "num_heads": 1, "d": 2, "hidden": [], "units": [3]}
    options |= {"n_k": 2, "n_v": 2}
    source = initializers.theory_transformer(jax.random.key(SEED, impl=ticket.IMPL), **options)
    masks = jax.tree.map(lambda w: w > 0, source)
    ticket.save(tmp_path / "t.ticket.safetensors", ticket.create(
        "theory_transformer", options, SEED, masks
    ))  # fmt: skip
    weights = ticket.materialize(ticket.load(tmp_path / "t.ticket.safetensors"))
    chex.assert_trees_all_equal(weights, jax.tree.map(lambda w: w * (w > 0), source))
