"""The files and folders that are damaged, and the calls that read them.

A subject is written once. Each case damages a copy, and reads it as a user would; the value that is
read must then be the one of the whole file, unless the subject is not sealed by checksums.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from experiments.fuzz import mutations
from slth_jax import attention, edge_popup, hide, initializers, models, sweep, ticket
from slth_jax.construction import prune_attention

INPUTS = np.random.default_rng(0).normal(size=(1, 3, 2)).astype(np.float32)
KEY = jax.random.key(0, impl="threefry2x32")
_NAME = "ticket.safetensors"
WIDTH, BLOCKS, VOCABULARY, LENGTH = 8, 2, 16, 12


@dataclasses.dataclass(frozen=True)
class Subject:
    """A file or folder, and the calls that read it.

    Attributes:
      name: the subject's name.
      write: writes it into an empty folder.
      change: damages a copy of that folder.
      read: reads the folder; the result is compared.
      sealed: whether a result that is not refused must be the one of the whole folder.
    """

    name: str
    write: Callable[[Path], Any]
    change: Callable[[random.Random, Path], None]
    read: Callable[[Path], Any]
    sealed: bool = True


def _bytes_of(name: str) -> Callable[[random.Random, Path], None]:
    def change(rng: random.Random, folder: Path) -> None:
        file = folder / name
        file.write_bytes(mutations.change_bytes(rng, file.read_bytes()))

    return change


# Tickets


def _drawn(n: int, seed: int):
    key = jax.random.key(seed, impl=ticket.IMPL)
    return initializers.theory_attention(key, num_heads=1, d_in=2, d_out=2, n_k=n, n_v=n)


def _write_ticket(folder: Path) -> None:
    options = {"num_heads": 1, "d_in": 2, "d_out": 2, "n_k": 12, "n_v": 12}
    masks = prune_attention(_drawn(12, 1), _drawn(2, 9), construction="proof")
    pruned = jax.tree.map(lambda w, mask: w * mask, _drawn(12, 1), masks)
    error = float(attention.error(pruned, _drawn(2, 9), INPUTS).mean())
    made_of = {"error": error, "dtype": "float32", "versions": {"jax": jax.__version__}}
    whole = ticket.create("theory", options, 1, masks, metadata=made_of)
    ticket.save(folder / "a.ticket.safetensors", whole)


def _read_ticket(folder: Path) -> Any:
    path = folder / "a.ticket.safetensors"
    ticket.describe(ticket.open(path))
    ticket.verify(path)
    loaded = ticket.load(path)
    target = _drawn(2, 9)
    ticket.verify(path, target=target, inputs=INPUTS)
    return ticket.materialize(loaded)


def _crafted(name: str) -> Callable[[random.Random, Path], None]:
    """Change a ticket's header and give it the right checksum, or change the tensors' table."""

    def change(rng: random.Random, folder: Path) -> None:
        file = folder / name
        header, data = mutations.split_safetensors(file.read_bytes())
        if rng.random() < 0.7:
            _, _, text = header["__metadata__"]["ticket"].partition(" ")
            text = mutations.json_text(rng, json.loads(text)).decode("utf-8", "replace")
            digest = hashlib.sha256(text.encode()).hexdigest()
            header["__metadata__"]["ticket"] = f"{digest} {text}"
        else:
            header = mutations.change_json(rng, header)
        file.write_bytes(mutations.safetensors_bytes(header, data))

    return change


def _llama(seed: int = 0) -> tuple[models.Settings, dict[str, np.ndarray]]:
    settings = models.make_settings(
        vocab_size=VOCABULARY, width=WIDTH, num_blocks=BLOCKS, num_heads=2, num_kv_heads=1,
        hidden_width=12, max_length=LENGTH, norm="rms", positions="rotary", gated=True,
        activation="silu", tied=True,
    )  # fmt: skip
    drawn = models.initialise(jax.random.key(seed), settings, models.Initial(sd=0.3, biases=()))
    return settings, {name: np.asarray(value) for name, value in drawn.items()}


def _write_llama2c(folder: Path) -> None:
    rng = np.random.default_rng(0)
    # width, hidden, blocks, heads, key/value heads, vocabulary, length
    sizes = (WIDTH, 12, BLOCKS, 2, 1, VOCABULARY, LENGTH)
    k = WIDTH // 2
    count = VOCABULARY * WIDTH + BLOCKS * (2 * WIDTH + 2 * WIDTH**2 + 2 * WIDTH * k + 36 * WIDTH)
    weights = rng.normal(0, 0.5, count + WIDTH + 2 * LENGTH * k // 2).astype("<f4")
    (folder / "model.bin").write_bytes(struct.pack("<7i", *sizes) + weights.tobytes())


def _read_weights(path: Path) -> Any:
    reader = models.weights.open(path)
    reader.check_entries()
    hide.make_spec(reader, samples=4) if reader.settings.causal else None
    return reader.load()


def _write_model_ticket(folder: Path) -> None:
    _write_llama2c(folder)
    reader = models.weights.open(folder / "model.bin")
    hide.solve(reader, hide.make_spec(reader, samples=3), folder / "out")
    (folder / "out" / _NAME).replace(folder / _NAME)
    for file in sorted((folder / "out").rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    (folder / "out").rmdir()
    (folder / "model.bin").unlink()


def _read_model_ticket(folder: Path) -> Any:
    path = folder / _NAME
    ticket.describe(ticket.open(path))
    ticket.verify(path)
    return hide.of_ticket(path).load()


def _write_hide(folder: Path) -> None:
    """Write a run that has every second piece."""
    _write_llama2c(folder)
    with contextlib.suppress(hide.Unfinished):
        _hide(folder, shard="0/2")


def _hide(folder: Path, shard: str | None = None) -> Path:
    reader = models.weights.open(folder / "model.bin")
    spec = hide.make_spec(reader, samples=3)
    return hide.solve(reader, spec, folder / "out", shard=shard)


def _change_hide(rng: random.Random, folder: Path) -> None:
    mutations.change_folder(rng, folder / "out")


def _read_hide(folder: Path) -> Any:
    whole = ticket.load(_hide(folder))
    return dict(whole.bits), whole.options, whole.fingerprint


# Trained models


def _hugging_face(kind: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        settings, params = _llama() if kind == "llama" else _gpt2()
        models.weights.save(folder, params, settings)

    return write


def _gpt2() -> tuple[models.Settings, dict[str, np.ndarray]]:
    settings = models.make_settings(
        vocab_size=VOCABULARY, width=WIDTH, num_blocks=BLOCKS, num_heads=2, hidden_width=12,
        max_length=LENGTH,
    )  # fmt: skip
    drawn = models.initialise(jax.random.key(1), settings, models.Initial(sd=0.3))
    return settings, {name: np.asarray(value) for name, value in drawn.items()}


def _change_model(rng: random.Random, folder: Path) -> None:
    """Change the configuration, the arrays, the table of the arrays, or any byte."""
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

    settings, params = _llama()
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


def _write_tokenizer(folder: Path) -> None:
    """Write a llama2.c tokenizer, and a Hugging Face one of bytes."""
    pieces = [b"<unk>", b"<s>", b"</s>", *(b"<0x%02X>" % byte for byte in range(256)), b"a", b"b"]
    data = struct.pack("<i", max(map(len, pieces)))
    for index, piece in enumerate(pieces):
        data += struct.pack("<fi", -float(index), len(piece)) + piece
    (folder / "tokenizer.bin").write_bytes(data)
    vocabulary = {chr(97 + i): i for i in range(13)} | {"ab": 13, "<s>": 14, "</s>": 15}
    whole: dict[str, Any] = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
        "normalizer": None, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None,
        "decoder": None,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": [["a", "b"]], "unk_token": None},
    }  # fmt: skip
    (folder / "hub").mkdir()
    (folder / "hub" / "tokenizer.json").write_text(json.dumps(whole))
    settings = {
        "eos_token": "</s>",
        "chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}",
    }
    (folder / "hub" / "tokenizer_config.json").write_text(json.dumps(settings))


def _read_tokenizer(folder: Path) -> Any:
    from slth_jax.models import tokens

    texts = []
    for path in (folder / "tokenizer.bin", folder / "hub"):
        tokenizer = tokens.open_tokenizer(path)
        numbers = [int(token) for token in tokenizer.encode("abc")]
        texts.append((numbers, tokenizer.decode(numbers)))
    return texts


# Folders of runs


def _trial(key, hparams):
    x = jax.random.normal(key, (3,)) * hparams["scale"]
    return {"error": jnp.sum(x**2)}, {"mask": x > 0}


def _sweep(folder: Path) -> Any:
    grid = {"scale": [1.0, 2.0]}
    return sweep.run(_trial, seeds=3, grid=grid, out=folder / "sweep", chunk=2)


def _read_sweep(folder: Path) -> Any:
    results = sweep.load(folder / "sweep")
    again = _sweep(folder)
    rows = [results.row(index) for index in range(len(results))]
    arrays = [results.arrays(index) for index in range(len(results))]
    return rows, arrays, [again.row(index) for index in range(len(again))]


def _loss(params, batch):
    return jnp.mean((batch @ params["w"] - jnp.sum(batch, axis=1, keepdims=True)) ** 2)


def _batches(step):
    return jax.random.normal(jax.random.fold_in(KEY, step), (8, 4))


def _fit(folder: Path, steps: int = 4) -> Any:
    training = edge_popup.Training(
        steps=steps, optimizer=edge_popup.Schedule(steps=4).optimizer(0.05), evaluate_every=2
    )
    params = {"w": jax.random.normal(KEY, (4, 1))}
    return edge_popup.fit(
        KEY, params, _loss, _batches, keep=0.5, training=training, out=folder / "fit"
    )


def _read_fit(folder: Path) -> Any:
    [fit] = _fit(folder)
    return fit.masks


def _change_run(rng: random.Random, folder: Path) -> None:
    mutations.change_folder(rng, folder)


def _write_experiment(folder: Path) -> None:
    from experiments.__main__ import main

    options = ["--set", "widths=8", "--set", "targets=2", "--seeds", "2", "--quiet"]
    if main(["hidden-dim", "--preset", "quick", "--out", str(folder / "run"), *options]):
        raise RuntimeError("the experiment failed")


def _read_report(folder: Path) -> Any:
    from experiments import report

    report.write([folder / "run"], folder / "page.html")
    return None


SUBJECTS: tuple[Subject, ...] = (
    Subject("ticket bytes", _write_ticket, _bytes_of("a.ticket.safetensors"), _read_ticket),
    Subject("ticket header", _write_ticket, _crafted("a.ticket.safetensors"), _read_ticket, False),
    Subject("model ticket bytes", _write_model_ticket, _bytes_of(_NAME), _read_model_ticket),
    Subject("model ticket header", _write_model_ticket, _crafted(_NAME), _read_model_ticket,
            sealed=False),
    Subject("hide folder", _write_hide, _change_hide, _read_hide),
    Subject("llama2.c", _write_llama2c, _bytes_of("model.bin"),
            lambda folder: _read_weights(folder / "model.bin"), sealed=False),
    Subject("llama folder", _hugging_face("llama"), _change_model, _read_weights, sealed=False),
    Subject("gpt2 folder", _hugging_face("gpt2"), _change_model, _read_weights, sealed=False),
    Subject("archive", _write_lens, _change_lens,
            lambda folder: _read_weights(folder / "net.npz"), sealed=False),
    Subject("gguf", _write_gguf, _bytes_of("model.gguf"),
            lambda folder: _read_weights(folder / "model.gguf"), sealed=False),
    Subject("tokenizer", _write_tokenizer, _change_run, _read_tokenizer, sealed=False),
    Subject("sweep folder", _sweep, _change_run, _read_sweep),
    Subject("fit folder", _fit, _change_run, _read_fit),
    Subject("report", _write_experiment, _change_run, _read_report, sealed=False),
)  # fmt: skip


def equal(a: Any, b: Any) -> bool:
    """Return whether two results have the same structure and the same bits."""
    a_leaves, a_tree = jax.tree.flatten(a)
    b_leaves, b_tree = jax.tree.flatten(b)
    return str(a_tree) == str(b_tree) and all(
        np.array_equal(np.asarray(x), np.asarray(y))
        for x, y in zip(a_leaves, b_leaves, strict=True)
    )
