"""Rewrite TransformerLens's network (release 2.18) with torch, and draw state dicts of it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.nn import functional

ACTIVATIONS = {
    "relu": torch.relu,
    "gelu": functional.gelu,
    "gelu_new": lambda x: functional.gelu(x, approximate="tanh"),
    "gelu_fast": lambda x: functional.gelu(x, approximate="tanh"),
    "silu": functional.silu,
}


def arrays_of(config: Mapping[str, Any], seed: int = 0) -> dict[str, Any]:
    """Return a random state dict with the names and shapes of TransformerLens's modules."""
    c: dict[str, Any] = {"n_key_value_heads": None, "normalization_type": "LN", **config}
    rng = np.random.default_rng(seed)
    d, k, h, f = c["d_model"], c["d_head"], c["n_heads"], c["d_mlp"]
    g, under = (c["n_key_value_heads"], "_") if c["n_key_value_heads"] else (h, "")
    outputs = c["d_vocab"] if c["d_vocab_out"] == -1 else c["d_vocab_out"]
    shapes: dict[str, tuple[int, ...]] = {
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
    arrays: dict[str, Any] = {
        n: rng.normal(0, 0.6, s).astype(np.float32) for n, s in shapes.items()
    }
    for b in range(c["n_layers"]):
        arrays[f"blocks.{b}.attn.mask"] = np.tril(np.ones((c["n_ctx"],) * 2, bool))
        arrays[f"blocks.{b}.attn.IGNORE"] = np.float32(-np.inf)
    return arrays


def reference(
    config: Mapping[str, Any], arrays: Mapping[str, Any], tokens: np.ndarray
) -> np.ndarray:
    """Compute the logits of a network with configuration `config` and weights `arrays`."""
    c: dict[str, Any] = {
        "normalization_type": "LN",
        "eps": 1e-5,
        "attention_dir": "causal",
        "attn_scale": -1.0,
        "use_attn_scale": True,
        "rotary_base": 10000,
        "n_key_value_heads": None,
        **config,
    }
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
