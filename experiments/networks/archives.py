"""Cases: archives of TransformerLens, compared with its network rewritten in torch."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.networks.hugging_face import logits
from experiments.networks.judge import Case, Outputs
from experiments.networks.transformer_lens import arrays_of, reference

VOCABULARY, LENGTH = 13, 9
TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, (2, LENGTH))
BASE: dict[str, Any] = {
    "n_layers": 2, "d_model": 8, "n_ctx": LENGTH, "d_head": 4, "n_heads": 4, "d_mlp": 10,
    "act_fn": "relu", "d_vocab": VOCABULARY, "d_vocab_out": VOCABULARY,
}  # fmt: skip
# For each key: values that this library reads, and values that it must refuse.
TABLE: dict[str, tuple[list[Any], list[Any]]] = {
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


def write(folder: Path, config: dict[str, Any], arrays: dict[str, Any]) -> Path:
    """Write an archive, and its configuration into a second file; return the archive's path."""
    np.savez(folder / "net.npz", **arrays)
    (folder / "net.json").write_text(json.dumps(config))
    return folder / "net.npz"


def refused_keys(config: dict[str, Any]) -> list[str]:
    """Return the keys of a configuration whose values must be refused according to `TABLE`.

    Keys that have no effect in this configuration are left out.
    """
    effect = {
        "rotary_base": config.get("positional_embedding_type") == "rotary",
        "attn_scale": config.get("use_attn_scale", True),
        "act_fn": not config.get("attn_only"),
    }
    return [k for k, v in config.items() if effect.get(k, True) and v in TABLE.get(k, ((), ()))[1]]


def changed(
    words: str, changes: dict[str, Any], change: Callable[[dict[str, Any]], Any] | None = None
) -> Case:
    """Return a case: an archive of the configuration `BASE` with `changes`.

    `change` is a function that alters the arrays.
    """

    def make(folder: Path) -> tuple[Outputs, Outputs]:
        config = BASE | changes
        refused = refused_keys(config)
        plain = config | {key: TABLE[key][0][0] for key in refused if TABLE[key][0]}
        arrays = arrays_of(plain)
        if change is not None:
            change(arrays)
        path = write(folder, config, arrays)

        def makers() -> np.ndarray:
            if refused:
                raise NotImplementedError(f"keys {refused} are not in this copy of the network")
            native = {n: np.asarray(v, v.dtype.newbyteorder("=")) for n, v in arrays.items()}
            return reference(config, native, TOKENS)

        return (lambda: logits(path, TOKENS)), makers

    return Case(words, make)


def draw(seed: str) -> Case:
    """Draw a case: the configuration `BASE` with random values for up to nine keys."""
    rng = random.Random(f"{seed} archive")
    changes: dict[str, Any] = {}
    for key in rng.sample(sorted(TABLE), k=9):
        supported, others = TABLE[key]
        if others and (not supported or rng.random() < 0.12):
            if rng.random() < 0.3:
                changes[key] = rng.choice(others)
        else:
            changes[key] = rng.choice(supported)
    return changed(", ".join(f"{k}={v!r}" for k, v in changes.items()), changes)


def _foreign(arrays: dict[str, Any]) -> None:
    for name, value in arrays.items():
        arrays[name] = value if value.dtype == bool else np.asarray(value, ">f4")


def _nan(arrays: dict[str, Any]) -> None:
    arrays["blocks.1.mlp.W_in"][0, 0] = np.nan


def _alone(folder: Path) -> tuple[Outputs, Outputs]:
    path = write(folder, BASE, arrays_of(BASE))
    (folder / "net.json").unlink()
    return (lambda: logits(path, TOKENS)), (lambda: reference(BASE, arrays_of(BASE), TOKENS))


_KEYS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("folded LayerNorm", {"normalization_type": "LNPre"}),
    ("RMS normalisation", {"normalization_type": "RMS"}),
    ("no normalisation", {"normalization_type": None}),
    ("gated", {"gated_mlp": True, "act_fn": "silu"}),
    *((f"activation {name}", {"act_fn": name}) for name in ("gelu", "gelu_new", "silu", "solu")),
    ("d_vocab_out 3", {"d_vocab_out": 3}),
    ("bidirectional", {"attention_dir": "bidirectional"}),
    ("attention and network in parallel", {"parallel_attn_mlp": True}),
    ("shortformer", {"positional_embedding_type": "shortformer"}),
    ("rotary", {"positional_embedding_type": "rotary", "rotary_dim": 4}),
    ("local attention", {"use_local_attn": True}),
    ("softcap of scores", {"attn_scores_soft_cap": 20.0}),
    ("softcap of logits", {"output_logits_soft_cap": 30.0}),
    ("another attention scale", {"attn_scale": 3.0}),
    ("no attention scale", {"use_attn_scale": False}),
    ("eps 0.04", {"eps": 0.04}),
    ("grouped keys and values", {"n_key_value_heads": 2}),
    ("attention alone", {"attn_only": True}),
)
CASES = (
    *(changed(f"archive: {words}", changes) for words, changes in _KEYS),
    changed("archive: foreign byte order", {}, _foreign),
    changed("archive: an unknown array", {}, lambda a: a.update(mystery=a["unembed.b_U"])),
    changed("archive: NaN in the last block", {}, _nan),
    Case("archive: no configuration", _alone),
)
