"""Archives of TransformerLens: read as its network computes them, or refused by name."""

import json
import random

import numpy as np
import pytest
import torch
from refusals import refusals
from torch.nn import functional

from slth_jax import models, storage

VOCABULARY, LENGTH = 13, 9
TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, (2, LENGTH))
BASE = {
    "n_layers": 2, "d_model": 8, "n_ctx": LENGTH, "d_head": 4, "n_heads": 4, "d_mlp": 10,
    "act_fn": "relu", "d_vocab": VOCABULARY, "d_vocab_out": VOCABULARY,
}  # fmt: skip
# For each key: values that are read, and values that are not.
TABLE = {
    "normalization_type": (["LN", "LNPre", "RMS", "RMSPre", None], ["batch"]),
    "act_fn": (["relu", "gelu", "gelu_new", "gelu_fast", "silu"], ["solu", "solu_ln", None]),
    "d_vocab_out": ([VOCABULARY, 3, -1], []),
    "attention_dir": (["causal", "bidirectional"], ["sideways"]),
    "attn_only": ([True, False], []),
    "gated_mlp": ([True, False], []),
    "attn_scale": ([-1.0, 3.0], [0.0]),
    "use_attn_scale": ([True, False], []),
    "scale_attn_by_inverse_layer_idx": ([True, False], []),
    "eps": ([1e-5, 0.04], ["x"]),
    "positional_embedding_type": (["standard", "rotary"], ["shortformer", "alibi"]),
    "rotary_adjacent_pairs": ([True, False], []),
    "rotary_base": ([10000, 50], [0]),
    "n_key_value_heads": ([None, 2], []),
    "parallel_attn_mlp": ([False], [True]),
    "use_local_attn": ([False], [True]),
    "attn_scores_soft_cap": ([-1.0], [20.0]),
    "output_logits_soft_cap": ([-1.0], [30.0]),
    "use_qk_norm": ([False], [True]),
    "post_embedding_ln": ([False], [True]),
    "num_experts": ([None], [4]),
    "model_name": (["custom"], []),
    "mystery": ([], [1]),
}
ACTIVATIONS = {
    "relu": torch.relu,
    "gelu": functional.gelu,
    "gelu_new": lambda x: functional.gelu(x, approximate="tanh"),
    "gelu_fast": lambda x: functional.gelu(x, approximate="tanh"),
    "silu": functional.silu,
}


def arrays_of(config, seed=0):
    """Return a random state dict, as TransformerLens's modules have it."""
    c = {"n_key_value_heads": None, "normalization_type": "LN"} | config
    rng = np.random.default_rng(seed)
    d, k, h, f = c["d_model"], c["d_head"], c["n_heads"], c["d_mlp"]
    g, under = (c["n_key_value_heads"], "_") if c["n_key_value_heads"] else (h, "")
    outputs = c["d_vocab"] if c["d_vocab_out"] == -1 else c["d_vocab_out"]
    shapes = {
        "embed.W_E": (c["d_vocab"], d),
        "unembed.W_U": (d, outputs),
        "unembed.b_U": (outputs,),
    }
    if c.get("positional_embedding_type", "standard") == "standard":
        shapes["pos_embed.W_pos"] = (c["n_ctx"], d)
    norms = ["ln_final"]
    for b in range(c["n_layers"]):
        part = f"blocks.{b}."
        norms.append(f"{part}ln1")
        for name, heads, dash in (("Q", h, ""), ("K", g, under), ("V", g, under)):
            shapes |= {
                f"{part}attn.{dash}W_{name}": (heads, d, k),
                f"{part}attn.{dash}b_{name}": (heads, k),
            }
        shapes |= {f"{part}attn.W_O": (h, k, d), f"{part}attn.b_O": (d,)}
        if not c.get("attn_only"):
            norms.append(f"{part}ln2")
            shapes |= {
                f"{part}mlp.W_in": (d, f),
                f"{part}mlp.b_in": (f,),
                f"{part}mlp.W_out": (f, d),
                f"{part}mlp.b_out": (d,),
            }
            if c.get("gated_mlp"):
                shapes[f"{part}mlp.W_gate"] = (d, f)
    if c["normalization_type"] in ("LN", "RMS"):
        for name in norms:
            shapes[f"{name}.w"] = (d,)
            if c["normalization_type"] == "LN":
                shapes[f"{name}.b"] = (d,)
    arrays = {n: rng.normal(0, 0.6, s).astype(np.float32) for n, s in shapes.items()}
    for b in range(c["n_layers"]):
        arrays[f"blocks.{b}.attn.mask"] = np.tril(np.ones((c["n_ctx"],) * 2, bool))
        arrays[f"blocks.{b}.attn.IGNORE"] = np.float32(-np.inf)
    return arrays


def reference(config, arrays, tokens=TOKENS):
    """Return the logits of TransformerLens's network (2.18), written out with torch."""
    c = {
        "normalization_type": "LN",
        "eps": 1e-5,
        "attention_dir": "causal",
        "attn_scale": -1.0,
        "use_attn_scale": True,
        "rotary_base": 10000,
        "n_key_value_heads": None,
    } | config
    a = {n: torch.tensor(v) for n, v in arrays.items()}
    k, kind = c["d_head"], c["normalization_type"]
    rotary = c.get("positional_embedding_type") == "rotary"
    count = tokens.shape[1]

    def norm(x, name):
        if kind is None:
            return x
        if kind.startswith("LN"):
            x = x - x.mean(-1, keepdim=True)
        x = x / (x.pow(2).mean(-1, keepdim=True) + c["eps"]).sqrt()
        if kind in ("LN", "RMS"):
            x = x * a[f"{name}.w"]
        return x + a[f"{name}.b"] if kind == "LN" else x

    def rotated(x):  # [n, t, h, k]
        turns = c["rotary_base"] ** -(torch.arange(k // 2) / (k / 2))
        angles = torch.arange(count)[:, None] * turns[None]
        flipped = torch.empty_like(x)
        if c.get("rotary_adjacent_pairs"):
            angles = angles.repeat_interleave(2, -1)
            flipped[..., ::2], flipped[..., 1::2] = -x[..., 1::2], x[..., ::2]
        else:
            angles = angles.repeat(1, 2)
            flipped[..., : k // 2], flipped[..., k // 2 :] = -x[..., k // 2 :], x[..., : k // 2]
        return x * angles.cos()[:, None] + flipped * angles.sin()[:, None]

    x = a["embed.W_E"][torch.tensor(tokens)]
    if not rotary:
        x = x + a["pos_embed.W_pos"][:count]
    for b in range(c["n_layers"]):
        part, y = f"blocks.{b}.", norm(x, f"blocks.{b}.ln1")
        heads = {}
        for name in "QKV":
            dash = "_" if c["n_key_value_heads"] and name != "Q" else ""
            w, bias = a[f"{part}attn.{dash}W_{name}"], a[f"{part}attn.{dash}b_{name}"]
            z = torch.einsum("ntd,hdk->nthk", y, w) + bias
            heads[name] = z.repeat_interleave(c["n_heads"] // z.shape[2], 2)
        if rotary:
            heads["Q"], heads["K"] = rotated(heads["Q"]), rotated(heads["K"])
        scale = (
            (k**0.5 if c["attn_scale"] == -1.0 else c["attn_scale"]) if c["use_attn_scale"] else 1
        )
        if c.get("scale_attn_by_inverse_layer_idx"):
            scale = scale * (b + 1)
        scores = torch.einsum("nthk,nshk->nhts", heads["Q"], heads["K"]) / scale
        if c["attention_dir"] == "causal":
            later = torch.triu(torch.ones(count, count, dtype=torch.bool), 1)
            scores = scores.masked_fill(later, -torch.inf)
        z = torch.einsum("nhts,nshk->nthk", scores.softmax(-1), heads["V"])
        x = x + torch.einsum("nthk,hkd->ntd", z, a[f"{part}attn.W_O"]) + a[f"{part}attn.b_O"]
        if not c.get("attn_only"):
            y, act = norm(x, f"{part}ln2"), ACTIVATIONS[c["act_fn"]]
            w_in, b_in = a[f"{part}mlp.W_in"], a[f"{part}mlp.b_in"]
            if c.get("gated_mlp"):
                y = act(y @ a[f"{part}mlp.W_gate"]) * (y @ w_in) + b_in
            else:
                y = act(y @ w_in + b_in)
            x = x + y @ a[f"{part}mlp.W_out"] + a[f"{part}mlp.b_out"]
    return (norm(x, "ln_final") @ a["unembed.W_U"] + a["unembed.b_U"]).numpy()


def written(folder, config, arrays):
    np.savez(folder / "net.npz", **arrays)
    (folder / "net.json").write_text(json.dumps(config))
    return folder / "net.npz"


def agree(path, config, arrays):
    reader = models.weights.open(path)
    reader.check_entries()
    logits = models.apply(reader.load(), TOKENS, reader.settings)
    np.testing.assert_allclose(logits, reference(config, arrays), atol=1e-4)


@pytest.mark.parametrize("number", range(12))
def test_random_configurations_are_read_as_their_maker_reads_them_or_refused(number, tmp_path):
    rng = random.Random(number)
    changes, refused = {}, []
    for key in rng.sample(sorted(TABLE), k=9):
        supported, others = TABLE[key]
        if number % 2 and others and rng.random() < 0.25:
            changes[key] = rng.choice(others)
            refused.append(key)
        elif supported:
            changes[key] = rng.choice(supported)
    used = {
        "rotary_base": changes.get("positional_embedding_type") == "rotary",
        "attn_scale": changes.get("use_attn_scale", True),
        "act_fn": not changes.get("attn_only"),
    }
    refused = [key for key in refused if used.get(key, True)]
    config = BASE | changes
    plain = config | {key: TABLE[key][0][0] for key in refused if TABLE[key][0]}
    arrays = arrays_of(plain)
    path = written(tmp_path, config, arrays)
    if refused:
        with refusals("must be") as caught:
            models.weights.open(path)
        assert any(key in str(caught.value) for key in refused)
    else:
        agree(path, config, arrays)


def test_arrays_in_foreign_byte_order_are_read(tmp_path):
    arrays = arrays_of(BASE)
    foreign = {n: v if v.dtype == bool else np.asarray(v, ">f4") for n, v in arrays.items()}
    agree(written(tmp_path, BASE, foreign), BASE, arrays)


def test_an_archive_alone_does_not_determine_its_network(tmp_path):
    arrays = arrays_of(BASE)
    path = written(tmp_path, BASE, arrays)
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
        models.weights.open(written(tmp_path, BASE, arrays))


def test_sizes_are_believed_only_if_the_arrays_have_them(tmp_path):
    for name in ("n_layers", "d_model", "d_head", "d_mlp", "d_vocab"):
        path = written(tmp_path, BASE | {name: 10**12}, arrays_of(BASE))
        with refusals(f"{name} must be .* got 1000000000000"):
            models.weights.open(path)
    with pytest.raises(storage.CheckpointError):
        (tmp_path / "net.npz").write_bytes(b"PK\x05\x06 no archive")
        models.weights.open(tmp_path / "net.npz")
