"""NumPy archives with the names of TransformerLens, and of Nanda et al. (2023)."""

import os
import zipfile
from pathlib import Path

import numpy as np

from slth_jax import checks
from slth_jax.models.settings import make_settings
from slth_jax.models.weights.reader import Arrays, Reader
from slth_jax.storage import CheckpointError, Damaged, reason

_NORMS = {"ln_1": "ln1", "ln_2": "ln2"}


def open_npz(path: str | os.PathLike[str]) -> Reader:
    """Return a reader of a small trained network: learned positions, a ReLU network or none.

    Keys: `embed.W_E`, `pos_embed.W_pos`, `blocks.N.attn.W_Q` (or `attn_blocks.N...`), `b_Q`,
    `blocks.N.mlp.W_in`, `blocks.N.ln1.w`, `ln_final.w`, `unembed.W_U`, `unembed.b_U`. Projections
    stand as ``[h, d, k]`` or ``[h, k, d]``, other matrices either way round. A network with another
    number of outputs than tokens is a classifier and attends both ways; in ARENA's bracket
    classifier, of five tokens, token 1 is padding.

    Raises:
      ValueError: an array that is missing or unknown.
      CheckpointError: the file is missing or damaged.
    """
    path = Path(path)
    try:
        with np.load(path) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except FileNotFoundError as error:
        raise CheckpointError(f"cannot read {path}: {reason(error)}") from error
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise Damaged(f"{path} is damaged: {reason(error)}") from error
    try:
        return _reader(path, arrays)
    except KeyError as error:
        raise checks.fail("weights", f"an archive with {error}", str(path)) from error


def _reader(path: Path, arrays: Arrays) -> Reader:
    w_pos = arrays["pos_embed.W_pos"]  # [position, d] in every layout; the rest is turned by it
    d = w_pos.shape[1]
    prefix = "attn_blocks" if "attn_blocks.0.attn.W_Q" in arrays else "blocks"
    count = 0
    while f"{prefix}.{count}.attn.W_Q" in arrays or not count:
        arrays[f"{prefix}.{count}.attn.W_Q"]
        count += 1
    first = f"{prefix}.0."
    h, _, k = _last(arrays[f"{first}attn.W_Q"], d).shape
    v = _last(arrays[f"{first}attn.W_V"], d).shape[2]
    wte, unembed = _turned(arrays["embed.W_E"], columns=d), _turned(arrays["unembed.W_U"], rows=d)
    causal = unembed.shape[1] == wte.shape[0]
    settings = make_settings(
        vocab_size=wte.shape[0],
        width=d,
        num_blocks=count,
        num_heads=h,
        head_width=k,
        value_width=v,
        hidden_width=arrays[f"{first}mlp.b_in"].size if f"{first}mlp.b_in" in arrays else 4 * d,
        max_length=w_pos.shape[0],
        norm="layer" if "ln_final.w" in arrays else "none",
        activation="relu",
        causal=causal,
        pad_token=1 if not causal and wte.shape[0] == 5 else None,
        tied=False,
        outputs=unembed.shape[1],
    )

    def ends() -> Arrays:
        found = {"wte": wte, "wpe": w_pos, "unembed": unembed}
        if "unembed.b_U" in arrays:
            found["unembed.bias"] = arrays["unembed.b_U"]
        return found | _norm(arrays, "ln_f", "ln_final")

    def block(index: int) -> Arrays:
        part = f"{prefix}.{index}."
        found: Arrays = {}
        for name in "qkv":
            w = _last(arrays[f"{part}attn.W_{name.upper()}"], d)
            found[f"attn.{name}"] = w.transpose(1, 0, 2).reshape(d, -1)
        w = arrays[f"{part}attn.W_O"]
        found["attn.o"] = w.reshape(h * v, d) if w.ndim == 3 else w.T
        for name in "qkvo":
            if f"{part}attn.b_{name.upper()}" in arrays:
                found[f"attn.{name}.bias"] = arrays[f"{part}attn.b_{name.upper()}"].reshape(-1)
        if f"{part}mlp.W_in" in arrays:
            for name, columns in (("in", settings.hidden_width), ("out", d)):
                found[f"mlp.{name}"] = _turned(arrays[f"{part}mlp.W_{name}"], columns=columns)
                found[f"mlp.{name}.bias"] = arrays[f"{part}mlp.b_{name}"]
        for ours, theirs in _NORMS.items():
            found |= _norm(arrays, ours, part + theirs)
        return found

    skipped = (".mask", ".IGNORE")
    size = sum(value.size for name, value in arrays.items() if not name.endswith(skipped))
    return Reader(str(path), settings, 4 * size, ends, block)


def _norm(arrays: Arrays, ours: str, theirs: str) -> Arrays:
    parts = {f"{ours}.gain": f"{theirs}.w", f"{ours}.bias": f"{theirs}.b"}
    return {name: arrays[each] for name, each in parts.items() if each in arrays}


def _last(w: np.ndarray, d: int) -> np.ndarray:
    """Return a projection `[h, d, k]` from `[h, d, k]` or `[h, k, d]`."""
    return w if w.shape[1] == d else w.transpose(0, 2, 1)


def _turned(w: np.ndarray, *, rows: int = 0, columns: int = 0) -> np.ndarray:
    """Return a matrix with so many rows or columns, turned where it stands the other way."""
    return w if w.shape[0] == rows or w.shape[1] == columns else w.T
