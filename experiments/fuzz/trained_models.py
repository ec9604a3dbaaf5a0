"""Subjects: model files in the formats in which trained models are published."""

import io
import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy

from experiments.fuzz import mutations
from experiments.fuzz.subject import Subject, bytes_of
from slth_jax import hide, models

KEY = jax.random.key(0, impl="threefry2x32")
WIDTH, BLOCKS, VOCABULARY, LENGTH = 8, 2, 16, 12
LLAMA: dict[str, Any] = {
    "num_kv_heads": 1, "norm": "rms", "positions": "rotary", "gated": True, "activation": "silu",
    "tied": True,
}  # fmt: skip


BERT: dict[str, Any] = {
    "causal": False, "post_norm": True, "states": True, "token_types": 2, "embedding_norm": True,
    "activation": "gelu_exact",
}  # fmt: skip


def _drawn_model(**options: Any) -> tuple[models.Settings, dict[str, np.ndarray]]:
    """Draw a random model whose sizes are this module's constants; `options` are other settings."""
    settings = models.make_settings(
        vocab_size=VOCABULARY, width=WIDTH, num_blocks=BLOCKS, num_heads=2, hidden_width=12,
        max_length=LENGTH, **options,
    )  # fmt: skip
    biases = () if settings.norm == "rms" else models.Initial().biases
    drawn = models.initialise(KEY, settings, models.Initial(sd=0.3, biases=biases))
    return settings, {name: np.asarray(value) for name, value in drawn.items()}


def write_llama2c(folder: Path) -> None:
    """Write a llama2.c file that contains random weights."""
    rng = np.random.default_rng(0)
    # The header: width, hidden, blocks, heads, key/value heads, vocabulary, length.
    sizes = (WIDTH, 12, BLOCKS, 2, 1, VOCABULARY, LENGTH)
    k = WIDTH // 2
    count = VOCABULARY * WIDTH + BLOCKS * (2 * WIDTH + 2 * WIDTH**2 + 2 * WIDTH * k + 36 * WIDTH)
    weights = rng.normal(0, 0.5, count + WIDTH + 2 * LENGTH * k // 2).astype("<f4")
    (folder / "model.bin").write_bytes(struct.pack("<7i", *sizes) + weights.tobytes())


def read_weights(path: Path) -> Any:
    """Read a model as `hide` does at its start; return the weights."""
    reader = models.weights.open(path)
    reader.check_entries()
    hide.make_spec(reader, samples=4)
    return reader.load()


def write_folder(**options: Any) -> Callable[[Path], None]:
    """Return a function that writes a Hugging Face folder of a model with these settings."""

    def write(folder: Path) -> None:
        settings, params = _drawn_model(**options)
        models.weights.save(folder, params, settings)

    return write


def _change_model(rng: random.Random, folder: Path) -> None:
    """Change the configuration, the arrays, the table of arrays, or any file of the folder."""
    config, weights = folder / "config.json", folder / "model.safetensors"
    action = rng.randrange(4)
    if action == 0:
        config.write_bytes(mutations.json_text(rng, json.loads(config.read_text())))
    elif action == 1:
        arrays = mutations.change_arrays(rng, safetensors.numpy.load(weights.read_bytes()))
        native = {n: np.ascontiguousarray(a, a.dtype.newbyteorder("=")) for n, a in arrays.items()}
        with np.errstate(all="ignore"):
            weights.write_bytes(safetensors.numpy.save(native))
    elif action == 2:
        header, data = mutations.split_safetensors(weights.read_bytes())
        changed = mutations.change_json(rng, header)
        weights.write_bytes(mutations.safetensors_bytes(changed, data))
    else:
        mutations.change_folder(rng, folder)


def _write_lens(folder: Path) -> None:
    rng = np.random.default_rng(0)
    d, k, h, f = WIDTH, 4, 2, 12
    shapes: dict[str, tuple[int, ...]] = {
        "embed.W_E": (VOCABULARY, d), "pos_embed.W_pos": (LENGTH, d),
        "unembed.W_U": (d, VOCABULARY), "unembed.b_U": (VOCABULARY,),
        "ln_final.w": (d,), "ln_final.b": (d,),
    }  # fmt: skip
    for b in range(BLOCKS):
        for name in "QKV":
            shapes |= {f"blocks.{b}.attn.W_{name}": (h, d, k), f"blocks.{b}.attn.b_{name}": (h, k)}
        shapes |= {f"blocks.{b}.attn.W_O": (h, k, d), f"blocks.{b}.attn.b_O": (d,)}
        for name in ("ln1", "ln2"):
            shapes |= {f"blocks.{b}.{name}.w": (d,), f"blocks.{b}.{name}.b": (d,)}
        shapes |= {f"blocks.{b}.mlp.W_in": (d, f), f"blocks.{b}.mlp.b_in": (f,)}
        shapes |= {f"blocks.{b}.mlp.W_out": (f, d), f"blocks.{b}.mlp.b_out": (d,)}
    arrays = {n: rng.normal(0, 0.5, s).astype(np.float32) for n, s in shapes.items()}
    np.savez(folder / "net.npz", **arrays)  # type: ignore[arg-type]
    config = {
        "n_layers": BLOCKS, "d_model": d, "n_ctx": LENGTH, "d_head": k, "n_heads": h, "d_mlp": f,
        "act_fn": "relu", "d_vocab": VOCABULARY, "d_vocab_out": VOCABULARY,
        "normalization_type": "LN", "attention_dir": "causal", "eps": 1e-5,
    }  # fmt: skip
    (folder / "net.json").write_text(json.dumps(config))


def _change_lens(rng: random.Random, folder: Path) -> None:
    file, config = folder / "net.npz", folder / "net.json"
    action = rng.randrange(3)
    if action == 0:
        config.write_bytes(mutations.json_text(rng, json.loads(config.read_text())))
    elif action == 1:
        with np.load(file) as archive:
            arrays = mutations.change_arrays(rng, dict(archive))
        if rng.random() < 0.1:
            arrays["embed.W_E"] = np.array([{"a": 1}], object)  # a pickle must not be opened
        written = io.BytesIO()
        np.savez(written, **arrays)  # type: ignore[arg-type]
        file.write_bytes(written.getvalue())
    else:
        mutations.change_folder(rng, folder)


def _write_gguf(folder: Path) -> None:
    import gguf

    settings, params = _drawn_model(**LLAMA)
    writer = gguf.GGUFWriter(folder / "model.gguf", "llama")
    writer.add_context_length(LENGTH)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(BLOCKS)
    writer.add_feed_forward_length(12)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(settings.norm_eps)
    writer.add_rope_freq_base(10_000.0)
    names = {
        "attn.q": "attn_q", "attn.k": "attn_k", "attn.v": "attn_v", "attn.o": "attn_output",
        "mlp.gate": "ffn_gate", "mlp.in": "ffn_up", "mlp.out": "ffn_down",
    }  # fmt: skip
    arrays = {"token_embd.weight": params["wte"], "output_norm.weight": params["ln_f.gain"]}
    for b in range(BLOCKS):
        for norm, name in (("ln_1", "attn_norm"), ("ln_2", "ffn_norm")):
            arrays[f"blk.{b}.{name}.weight"] = params[f"h.{norm}.gain"][b]
        for ours, name in names.items():
            arrays[f"blk.{b}.{name}.weight"] = np.ascontiguousarray(params[f"h.{ours}"][b].T)
    for name, array in arrays.items():
        writer.add_tensor(name, np.asarray(array, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _gguf_fields(rng: random.Random, folder: Path) -> None:
    """Rewrite the GGUF file with changed values or changed types of the keys."""
    import gguf

    file = folder / "model.gguf"
    reader = gguf.GGUFReader(file)
    writer = gguf.GGUFWriter(folder / "changed.gguf", "llama")
    fields = {
        name: (field.contents(), field.types[0])
        for name, field in reader.fields.items()
        if not name.startswith("GGUF.") and name != "general.architecture"
    }
    for name in rng.sample(sorted(fields), k=rng.choice((1, 1, 2))):
        value, type_ = fields[name]
        action = rng.randrange(4)
        if action == 0:
            del fields[name]
        elif action == 1:
            fields[name] = (rng.choice(("x", "\x1b[31m", "")), gguf.GGUFValueType.STRING)
        elif action == 2:
            numbers = (0, 1, 3, 2**31 - 1) if type_ != gguf.GGUFValueType.FLOAT32 else (
                0.0, -1.0, float("nan"), float("inf"), 1e30, 0.5
            )  # fmt: skip
            fields[name] = (rng.choice(numbers), type_)
        else:
            fields[name] = (rng.random() < 0.5, gguf.GGUFValueType.BOOL)
    if rng.random() < 0.3:
        fields["llama.mystery"] = (1, gguf.GGUFValueType.UINT32)
    for name, (value, type_) in fields.items():
        writer.add_key_value(name, value, type_)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (folder / "changed.gguf").replace(file)


SUBJECTS: tuple[Subject, ...] = (
    Subject("llama2.c", write_llama2c, bytes_of("model.bin"),
            lambda folder: read_weights(folder / "model.bin"), sealed=False),
    Subject("llama folder", write_folder(**LLAMA), _change_model, read_weights, sealed=False),
    Subject("gpt2 folder", write_folder(), _change_model, read_weights, sealed=False),
    Subject("archive", _write_lens, _change_lens,
            lambda folder: read_weights(folder / "net.npz"), sealed=False),
    Subject("gguf", _write_gguf, bytes_of("model.gguf"),
            lambda folder: read_weights(folder / "model.gguf"), sealed=False),
    Subject("gguf keys", _write_gguf, _gguf_fields,
            lambda folder: read_weights(folder / "model.gguf"), sealed=False),
    Subject("bert folder", write_folder(**BERT), _change_model, read_weights, sealed=False),
)  # fmt: skip
