"""Read NumPy archives of TransformerLens, and of Nanda et al.

(2023). The arrays of an archive alone do not determine a network. Activation, normalisation,
attention mask and scales are in TransformerLens's configuration. The configuration is read from the
file `NAME.json` beside `NAME.npz` or given as an argument.
"""

import hashlib
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from slth_jax import checks, storage
from slth_jax.models.settings import Settings, make_settings, rotary_frequencies
from slth_jax.models.weights import keys
from slth_jax.models.weights.gpt2 import ACTIVATIONS
from slth_jax.models.weights.keys import Keys
from slth_jax.models.weights.reader import Arrays, Reader
from slth_jax.models.weights.tensors import check_file

# Maps normalization_type to (norm in `Settings`, whether the archive has gains and shifts). Types
# that end in 'Pre' have them folded into the matrices.
_NORMS = {"LN": "layer", "LNPre": "layer", "RMS": "rms", "RMSPre": "rms", None: "none"}
_IGNORED = """
    act_fn_kwargs attn_types batch_size center_unembed center_writing_weights
    checkpoint_index checkpoint_label_type checkpoint_value
    decoder_start_token_id default_prepend_bos device dtype from_checkpoint init_mode init_weights
    initializer_range load_in_4bit_compute_dtype model_name n_devices n_params
    original_architecture seed tokenizer_name tokenizer_prepends_bos trust_remote_code
    use_attn_in use_attn_result use_hook_mlp_in use_hook_tokens use_split_qkv_input
    ungroup_grouped_query_attention window_size rotary_base_local
    NTK_by_parts_low_freq_factor NTK_by_parts_high_freq_factor NTK_by_parts_factor
    NTK_original_ctx_len relative_attention_max_distance relative_attention_num_buckets
"""
KEYS = Keys(
    used={
        "n_layers": None, "d_model": None, "n_ctx": None, "d_head": None, "n_heads": -1,
        "d_mlp": None, "act_fn": None, "d_vocab": -1, "d_vocab_out": -1, "eps": 1e-5,
        "normalization_type": "LN", "attention_dir": "causal", "attn_only": False,
        "use_attn_scale": True, "attn_scale": -1.0, "scale_attn_by_inverse_layer_idx": False,
        "positional_embedding_type": "standard", "gated_mlp": False, "n_key_value_heads": None,
        "rotary_base": 10_000, "rotary_dim": None, "rotary_adjacent_pairs": False,
        "pad_token": None, "final_rms": False,
    },
    only={
        "use_qk_norm": (False,), "use_local_attn": (False,), "parallel_attn_mlp": (False,),
        "post_embedding_ln": (False,), "load_in_4bit": (False,), "num_experts": (None,),
        "experts_per_token": (None,), "tie_word_embeddings": (False, True),
        "use_normalization_before_and_after": (False,), "attn_scores_soft_cap": (-1.0, -1, None),
        "output_logits_soft_cap": (-1.0, -1, None), "use_NTK_by_parts_rope": (False,),
    },
    ignored=frozenset(_IGNORED.split()),
)  # fmt: skip
"""The keys of a `HookedTransformerConfig`, and `pad_token`: a token that no token attends to."""

# Maps the SHA-256 of archives that were published without a configuration to the configuration.
_PUBLISHED = {
    # ARENA's bracket classifier, with the tokens start, (, ), padding, end; attention is
    # bidirectional.
    "1199ac57a88451167a6394cb3216c4ad34811b330da00742506b443e93c634cd": {
        "n_layers": 3, "d_model": 56, "n_ctx": 42, "d_head": 28, "n_heads": 2, "d_mlp": 56,
        "act_fn": "relu", "d_vocab": 5, "d_vocab_out": 2, "attention_dir": "bidirectional",
        "pad_token": 1,
    },
}  # fmt: skip


def open_npz(path: str | os.PathLike[str], *, config: Mapping[str, Any] | None = None) -> Reader:
    """Return a reader of an archive with the names of TransformerLens's state dict.

    Args:
      path: the archive, with the arrays `embed.W_E`, `pos_embed.W_pos`, `blocks.N.attn.W_Q`, ....
      config: the keys of TransformerLens's configuration; None to read them from `NAME.json` beside
        the archive. Archives in the layout of Nanda et al. (2023), whose projections are ``[h, k,
        d]``, need no configuration: these networks always have a causal mask, ReLU and no
        normalisation.

    Raises:
      ValueError: there is no configuration, a key or value is not supported, an array is missing or
        unknown, or an array has a wrong shape.
      CheckpointError: the file is missing or damaged.
    """
    path = Path(path)
    check_file(path)
    arrays = storage.read_numpy(path)
    if not isinstance(arrays, dict):
        raise checks.fail("model", "an archive of named arrays", str(path))
    for name, value in arrays.items():
        if not (np.issubdtype(value.dtype, np.floating) or name.endswith(".attn.mask")):
            raise checks.fail(f"weights[{name!r}]", "floating-point", f"dtype {value.dtype}")
    if config is None:
        config = _config(path, arrays)
    return _reader(path, arrays, config)


def _config(path: Path, arrays: Arrays) -> dict[str, Any]:
    """Return an archive's configuration, which is read from JSON, built in, or inferred."""
    beside = path.with_suffix(".json")
    if beside.exists():
        return storage.read_json(beside)
    published = _PUBLISHED.get(hashlib.sha256(storage.read_bytes(path)).hexdigest())
    if published is not None:
        return dict(published)
    if _turn(arrays):
        return _plain_config(arrays)
    allowed = f"beside {path.name}: activation, norms and mask are not among the arrays"
    raise checks.fail(f"the configuration {beside.name}", allowed, "no such file")


def _turn(arrays: Arrays) -> bool:
    """Transpose arrays if they have the layout of Nanda et al.; return whether they have it."""
    for name in [name for name in arrays if name.startswith("attn_blocks.")]:
        arrays[name.removeprefix("attn_")] = arrays.pop(name)
    first, positions = arrays.get("blocks.0.attn.W_Q"), arrays.get("pos_embed.W_pos")
    if first is None or positions is None or first.ndim != 3 or positions.ndim != 2:
        return False
    h, k, d = first.shape
    # TransformerLens always stores biases, and projections as [h, d, k].
    if d != positions.shape[1] or k == d or any(".b_Q" in name for name in arrays):
        return False
    for name, value in arrays.items():
        if re.search(r"\.W_[QKV]$", name) and value.ndim == 3:
            arrays[name] = value.transpose(0, 2, 1)
        elif name.endswith(".W_O") and value.shape == (d, h * k):
            arrays[name] = value.T.reshape(h, k, d)
        elif re.search(r"\.W_(in|out|E)$", name) and value.ndim == 2:
            arrays[name] = value.T
    return True


def _plain_config(arrays: Arrays) -> dict[str, Any]:
    h, d, k = arrays["blocks.0.attn.W_Q"].shape
    widths = {
        n: arrays[n].shape
        for n in ("blocks.0.mlp.W_in", "embed.W_E", "unembed.W_U")
        if n in arrays and arrays[n].ndim == 2
    }
    hidden = widths.get("blocks.0.mlp.W_in")
    return {
        "n_layers": _count(arrays), "d_model": d, "d_head": k, "n_heads": h,
        "n_ctx": len(arrays["pos_embed.W_pos"]), "normalization_type": None,
        "attn_only": hidden is None, "d_mlp": hidden and hidden[1], "act_fn": "relu",
        "d_vocab": widths.get("embed.W_E", (0,))[0],
        "d_vocab_out": widths.get("unembed.W_U", (0, 0))[1],
    }  # fmt: skip


def _count(arrays: Arrays) -> int:
    count = 0
    while f"blocks.{count}.attn.W_Q" in arrays:
        count += 1
    return count


def _settings(values: Mapping[str, Any]) -> Settings:
    """Return the settings that correspond to a configuration."""
    d, k = keys.size(values, "d_model"), keys.size(values, "d_head")
    h = d // k if values["n_heads"] == -1 else keys.size(values, "n_heads")
    norm = values["normalization_type"]
    if norm not in tuple(_NORMS):
        raise checks.fail("normalization_type", "LN, LNPre, RMS, RMSPre or null", repr(norm)[:80])
    if keys.flag(values, "final_rms") and _NORMS[norm] != "rms":
        raise checks.fail("final_rms", "false unless all norms are RMS", "true")
    only = keys.flag(values, "attn_only")
    activation = "relu"
    if not only:
        activation = ACTIVATIONS[checks.choice("act_fn", values["act_fn"], _ACTIVATIONS)]
    scale = 1.0
    if keys.flag(values, "use_attn_scale"):
        scale = values["attn_scale"]
        scale = math.sqrt(k) if scale == -1 else checks.number("attn_scale", scale, low=1e-6)
    kind = checks.choice(
        "positional_embedding_type", values["positional_embedding_type"], ("standard", "rotary")
    )
    rotary: dict[str, Any] = {}
    if kind == "rotary":
        if values["rotary_dim"] not in (None, k):
            raise checks.fail("rotary_dim", f"d_head = {k}", repr(values["rotary_dim"])[:80])
        base = checks.number("rotary_base", values["rotary_base"], low=1e-6, high=1e12)
        keys.flag(values, "rotary_adjacent_pairs")
        rotary = {"positions": "rotary", "rotary": rotary_frequencies(k, base)}
    direction = checks.choice("attention_dir", values["attention_dir"], ("causal", "bidirectional"))
    vocab_size = keys.size(values, "d_vocab")
    outputs = values["d_vocab_out"]
    return make_settings(
        vocab_size=vocab_size,
        width=d,
        num_blocks=keys.size(values, "n_layers"),
        num_heads=h,
        num_kv_heads=keys.size(values, "n_key_value_heads", h),
        head_width=k,
        hidden_width=keys.size(values, "d_mlp", 4 * d),
        outputs=vocab_size if outputs == -1 else keys.size(values, "d_vocab_out"),
        logit_scale=1 / scale,
        max_length=keys.size(values, "n_ctx"),
        norm=_NORMS[norm],
        norm_eps=checks.number("eps", values["eps"], low=0),
        activation=activation,
        gated=not only and keys.flag(values, "gated_mlp"),
        causal=direction == "causal",
        pad_token=values["pad_token"],
        tied=False,
        **rotary,
    )


_ACTIVATIONS = ("relu", "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "silu")


def _shapes(s: Settings, values: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return a dict from array name to shape; 'B.' stands for the prefix of any block."""
    d, h, g, k, f = s.width, s.num_heads, s.num_kv_heads, s.head_width, s.hidden_width
    grouped = "_" if values["n_key_value_heads"] is not None else ""
    shapes: dict[str, tuple[int, ...]] = {
        "embed.W_E": (s.vocab_size, d),
        "unembed.W_U": (d, s.outputs),
        "unembed.b_U": (s.outputs,),
        "B.attn.W_Q": (h, d, k),
        "B.attn.b_Q": (h, k),
        f"B.attn.{grouped}W_K": (g, d, k),
        f"B.attn.{grouped}b_K": (g, k),
        f"B.attn.{grouped}W_V": (g, d, k),
        f"B.attn.{grouped}b_V": (g, k),
        "B.attn.W_O": (h, k, d),
        "B.attn.b_O": (d,),
    }
    if s.positions == "learned":
        shapes["pos_embed.W_pos"] = (s.max_length, d)
    norms = ["B.ln1", "ln_final"]
    if not values["attn_only"]:
        shapes |= {
            "B.mlp.W_in": (d, f), "B.mlp.b_in": (f,), "B.mlp.W_out": (f, d), "B.mlp.b_out": (d,)
        }  # fmt: skip
        norms.append("B.ln2")
        if s.gated:
            shapes["B.mlp.W_gate"] = (d, f)
    if values["normalization_type"] in ("LN", "RMS"):
        for name in norms:
            shapes[f"{name}.w"] = (d,)
            if values["normalization_type"] == "LN":
                shapes[f"{name}.b"] = (d,)
    return shapes


def _reader(path: Path, arrays: Arrays, config: Mapping[str, Any]) -> Reader:
    values = keys.read(config, KEYS, kind="TransformerLens network")
    count = _count(arrays)
    if values["n_layers"] != count:
        raise checks.fail("n_layers", f"{count}, as in the archive", repr(values["n_layers"])[:80])
    shapes = _shapes(_checked_sizes(arrays, values), values)
    arrays = {
        name: value
        for name, value in arrays.items()
        if not re.search(r"^blocks\.\d+\.attn\.(mask|IGNORE|rotary_sin|rotary_cos)$", name)
    }
    for name, value in arrays.items():
        plain = re.sub(r"^blocks\.\d+\.", "B.", name)
        if plain not in shapes:
            raise checks.fail("weights", "a network of this configuration", f"also {name!r}")
        if value.shape != shapes[plain]:
            raise checks.fail(f"weights[{name!r}]", f"of shape {shapes[plain]}", f"{value.shape}")
    for name in shapes:
        for index in range(count if name.startswith("B.") else 1):
            full = name.replace("B.", f"blocks.{index}.")
            bias = re.search(r"\.b_|\.b$", name)
            if full not in arrays and not bias:
                raise checks.fail("weights", f"an archive with {full!r}", str(path))
    settings = _settings(values)
    scaled = keys.flag(values, "scale_attn_by_inverse_layer_idx")
    adjacent = settings.positions == "rotary" and keys.flag(values, "rotary_adjacent_pairs")

    def read_block(index: int) -> Arrays:
        block = _block(arrays, f"blocks.{index}.", settings)
        if scaled:
            for name in block.keys() & {"attn.q", "attn.q.bias"}:
                block[name] = block[name] / np.float32(index + 1)
        if adjacent:
            for name in block.keys() & {"attn.q", "attn.k", "attn.q.bias", "attn.k.bias"}:
                block[name] = _halves(block[name], settings.head_width)
        return block

    size = sum(value.size for value in arrays.values())
    return Reader(str(path), settings, 4 * size, lambda: _ends(arrays), read_block)


def _checked_sizes(arrays: Arrays, values: Mapping[str, Any]) -> Settings:
    """Refuse sizes above the number of entries of the largest array; return the settings."""
    most = max((value.size for value in arrays.values()), default=0)
    for name in ("d_model", "d_head", "d_mlp", "d_vocab", "n_heads"):
        value = values[name]
        if isinstance(value, int) and value > most:
            raise checks.fail(name, f"at most {most}, the entries of the largest array", value)
    return _settings(values)


def _ends(arrays: Arrays) -> Arrays:
    ends = {"wte": arrays["embed.W_E"], "unembed": arrays["unembed.W_U"]}
    for ours, theirs in (
        ("wpe", "pos_embed.W_pos"),
        ("unembed.bias", "unembed.b_U"),
        ("ln_f.gain", "ln_final.w"),
        ("ln_f.bias", "ln_final.b"),
    ):
        if theirs in arrays:
            ends[ours] = arrays[theirs]
    return ends


def _block(arrays: Arrays, part: str, settings: Settings) -> Arrays:
    """Return the arrays of one block under this library's names."""
    d = settings.width
    block: Arrays = {}
    for name in "qkv":
        for grouped in ("", "_"):
            w = arrays.get(f"{part}attn.{grouped}W_{name.upper()}")
            b = arrays.get(f"{part}attn.{grouped}b_{name.upper()}")
            if w is not None:
                block[f"attn.{name}"] = w.transpose(1, 0, 2).reshape(d, -1)
            if b is not None:
                block[f"attn.{name}.bias"] = b.reshape(-1)
    block["attn.o"] = arrays[f"{part}attn.W_O"].reshape(-1, d)
    names = {
        "attn.o.bias": "attn.b_O", "mlp.in": "mlp.W_in", "mlp.in.bias": "mlp.b_in",
        "mlp.out": "mlp.W_out", "mlp.out.bias": "mlp.b_out", "mlp.gate": "mlp.W_gate",
        "ln_1.gain": "ln1.w", "ln_1.bias": "ln1.b", "ln_2.gain": "ln2.w", "ln_2.bias": "ln2.b",
    }  # fmt: skip
    block |= {ours: arrays[part + name] for ours, name in names.items() if part + name in arrays}
    if settings.gated and "mlp.in.bias" in block:
        # TransformerLens adds this bias after the gate: (act(x gate) (x in) + b) out + b'.
        shift = np.asarray(block.pop("mlp.in.bias"), np.float64) @ block["mlp.out"]
        block["mlp.out.bias"] = (block.get("mlp.out.bias", 0) + shift).astype(np.float32)
    return block


def _halves(w: np.ndarray, head_width: int) -> np.ndarray:
    """Move the even columns of each head before its odd columns; columns are `[heads k]`."""
    pairs = w.reshape(*w.shape[:-1], -1, head_width // 2, 2)
    return np.moveaxis(pairs, -1, -2).reshape(w.shape)
