"""Single files of weights: llama2.c in three versions, GGUF; sizes are compared with the bytes."""

import struct

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import refusals

from slth_jax import models, storage

TOKENS = np.random.default_rng(0).integers(0, 32, (2, 9))
SHAPE = models.make_settings(
    vocab_size=32, width=64, num_blocks=2, num_heads=4, num_kv_heads=2, hidden_width=96,
    max_length=16, norm="rms", positions="rotary", gated=True, activation="silu", tied=False,
)  # fmt: skip
MATRICES = ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.gate", "mlp.out", "mlp.in")


@pytest.fixture(scope="module")
def params():
    key = jax.random.key(0, impl="threefry2x32")
    initial = models.Initial(sd=0.2, biases=())
    drawn = models.initialise(key, SHAPE, initial)
    return {name: np.asarray(value) + 0.05 * name.endswith("gain") for name, value in drawn.items()}


def stored(params, name, block):
    """Return a matrix as llama2.c and llama.cpp store it: transposed, heads as even, odd pairs."""
    w = params[f"h.{name}"][block].T
    if name in ("attn.q", "attn.k"):
        halves = w.reshape(-1, 2, SHAPE.head_width // 2, w.shape[1])
        w = halves.transpose(0, 2, 1, 3).reshape(w.shape)
    return np.ascontiguousarray(w)


def bin_file(path, params, version):
    """Write a llama2.c file as its export.py does."""
    s, floats = SHAPE, []
    sizes = [s.width, s.hidden_width, s.num_blocks, s.num_heads, s.num_kv_heads]
    blocks = range(s.num_blocks)

    def matrices_of(names):
        return [stored(params, name, b) for name in names for b in blocks]

    norms = {name: [params[f"h.{name}.gain"][b] for b in blocks] for name in ("ln_1", "ln_2")}
    ends = [params["wte"], np.ascontiguousarray(params["unembed"].T)]
    if version == 0:
        floats += [ends[0], *norms["ln_1"], *matrices_of(MATRICES[:4])]
        floats += [*norms["ln_2"], *matrices_of(MATRICES[4:])]
        floats += [params["ln_f.gain"], np.zeros((2, s.max_length, s.head_width // 2)), ends[1]]
        header = struct.pack("<7i", *sizes, -s.vocab_size, s.max_length)
        matrices = []
    else:
        floats += [*norms["ln_1"], *norms["ln_2"], params["ln_f.gain"]]
        matrices = [ends[0], *matrices_of(MATRICES), ends[1]]
        header = struct.pack("<I8i", 0x616B3432, version, *sizes, s.vocab_size, s.max_length)
        header += struct.pack("<B", 0) + (struct.pack("<i", 32) if version == 2 else b"")
        header = header.ljust(256, b"\0")
    data = header + b"".join(np.asarray(a, "<f4").tobytes() for a in floats)
    for w in matrices:
        if version == 1:
            data += np.asarray(w, "<f4").tobytes()
        else:
            groups = w.reshape(-1, 32)
            scales = np.abs(groups).max(1) / 127
            data += np.round(groups / scales[:, None]).astype("i1").tobytes()
            data += scales.astype("<f4").tobytes()
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("version", [0, 1, 2])
def test_llama2c_files_of_every_version(version, params, tmp_path):
    reader = models.weights.open(bin_file(tmp_path / "net.bin", params, version))
    assert reader.settings == SHAPE
    assert reader.num_bytes == 4 * sum(value.size for value in params.values())
    read = reader.load()
    assert read.keys() == params.keys()
    for name, value in params.items():
        # 8 bits: half a step of the largest entry of a group.
        step = np.abs(value).max() / 254 if version == 2 and not name.endswith("gain") else 0
        np.testing.assert_allclose(read[name], value, rtol=1e-6, atol=1.01 * step)


def test_headers_of_llama2c_are_believed_only_if_the_bytes_are_there(params, tmp_path):
    path = bin_file(tmp_path / "net.bin", params, 2)
    data = path.read_bytes()
    for place, value in ((8, 1 << 28), (12, 1 << 30), (16, 1 << 30), (28, 1 << 30), (37, 0)):
        path.write_bytes(data[:place] + struct.pack("<i", value) + data[place + 4 :])
        with pytest.raises(storage.Damaged, match=r"net\.bin is (damaged|no llama2\.c)"):
            models.weights.open(path)
    for content in (b"", data[:100], data[:-1], data + b"\0"):
        path.write_bytes(content)
        with pytest.raises(storage.Damaged):
            models.weights.open(path)


def gguf_file(path, params, kind, **fields):
    """Write a GGUF file as llama.cpp's converter does."""
    s = SHAPE
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(s.max_length)
    writer.add_embedding_length(s.width)
    writer.add_block_count(s.num_blocks)
    writer.add_feed_forward_length(s.hidden_width)
    writer.add_head_count(s.num_heads)
    writer.add_head_count_kv(s.num_kv_heads)
    writer.add_layer_norm_rms_eps(s.norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_string("tokenizer.ggml.model", "gpt2")
    for name, value in fields.items():
        writer.add_uint32(f"llama.{name}", value)

    def add(name, value, quantised=True):
        type_ = kind if quantised else gguf.GGMLQuantizationType.F32
        raw = gguf.quants.quantize(np.asarray(value, np.float32), type_)
        writer.add_tensor(name, raw, raw_dtype=type_)

    add("token_embd.weight", params["wte"])
    add("output.weight", np.ascontiguousarray(params["unembed"].T))
    add("output_norm.weight", params["ln_f.gain"], quantised=False)
    names = {"attn.q": "attn_q", "attn.k": "attn_k", "attn.v": "attn_v", "attn.o": "attn_output",
             "mlp.gate": "ffn_gate", "mlp.in": "ffn_up", "mlp.out": "ffn_down"}  # fmt: skip
    for b in range(s.num_blocks):
        add(f"blk.{b}.attn_norm.weight", params["h.ln_1.gain"][b], quantised=False)
        add(f"blk.{b}.ffn_norm.weight", params["h.ln_2.gain"][b], quantised=False)
        for ours, theirs in names.items():
            add(f"blk.{b}.{theirs}.weight", stored(params, ours, b))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
def test_gguf_files_of_every_type(kind, params, tmp_path):
    type_ = gguf.GGMLQuantizationType[kind]
    reader = models.weights.open(gguf_file(tmp_path / "net.gguf", params, type_))
    assert reader.settings == SHAPE
    read = reader.load()
    assert read.keys() == params.keys()
    for name in MATRICES:  # as the library dequantises them, in our order of rows
        raw = gguf.quants.quantize(stored(params, name, 1), type_)
        expected = gguf.quants.dequantize(raw, type_)
        np.testing.assert_array_equal(stored(read, name, 1), expected)
    if kind == "F32":
        ours = models.apply(read, TOKENS, reader.settings)
        np.testing.assert_array_equal(
            ours, models.apply(jax.tree.map(jnp.asarray, params), TOKENS, SHAPE)
        )


@pytest.mark.parametrize(
    "field, line",
    [
        ("attention.key_length", r"head_count \* key_length must be 64, as in the weights"),
        ("attention.sliding_window", "'attention.sliding_window' must be absent"),
        ("expert_count", "expert_count must be 0"),
        ("vocab_size", "vocab_size must be 32, as in the weights"),
    ],
)
def test_keys_of_gguf_are_used_or_refused(field, line, params, tmp_path):
    kind = gguf.GGMLQuantizationType.F32
    path = gguf_file(tmp_path / "net.gguf", params, kind, **{field: 1 << 20})
    with refusals(line):
        models.weights.open(path)


def test_a_damaged_gguf_is_one_line(tmp_path):
    for content in (b"", b"GGUF", b"GGUF" + b"\xff" * 60, b"no such file" * 9):
        (tmp_path / "net.gguf").write_bytes(content)
        with pytest.raises(storage.Damaged, match="damaged or no GGUF file"):
            models.weights.open(tmp_path / "net.gguf")
