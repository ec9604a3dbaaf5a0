"""Cases: llama2.c and GGUF files, compared with llama2.c's program rewritten in NumPy.

In a GGUF file of the Llama type the rows of the matrices are in llama2.c's order. llama.cpp
computes the same function of the arrays as llama2.c, except that it reads the rotary base, the
position factor and eps from the file.
"""

import random
import struct
from pathlib import Path
from typing import Any

import numpy as np

from experiments.networks.hugging_face import logits
from experiments.networks.judge import Case, Outputs

Arrays = dict[str, np.ndarray]
VOCABULARY, LENGTH = 32, 9
TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, (2, LENGTH))
MATRICES = ("wq", "wk", "wv", "wo", "w1", "w2", "w3")
TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q6_K", "Q4_K")
SIZES = {
    "width": 64, "hidden": 96, "blocks": 2, "heads": 4, "kv_heads": 2, "length": 16, "tied": False,
}  # fmt: skip


def arrays_of(sizes: dict[str, Any], seed: int = 0) -> Arrays:
    """Return random arrays with llama2.c's names and shapes ``[block, out, in]``."""
    rng = np.random.default_rng(seed)
    d, f, b = sizes["width"], sizes["hidden"], sizes["blocks"]
    kv = d // sizes["heads"] * sizes["kv_heads"]
    shapes = {
        "embedding": (VOCABULARY, d), "wq": (b, d, d), "wk": (b, kv, d), "wv": (b, kv, d),
        "wo": (b, d, d), "w1": (b, f, d), "w2": (b, d, f), "w3": (b, f, d),
    }  # fmt: skip
    if not sizes["tied"]:
        shapes["output"] = (VOCABULARY, d)
    arrays = {name: rng.normal(0, 0.2, shape) for name, shape in shapes.items()}
    norms = {"attention_norm": (b, d), "ffn_norm": (b, d), "norm": (d,)}
    arrays |= {name: 1 + rng.normal(0, 0.1, shape) for name, shape in norms.items()}
    return {name: value.astype(np.float32) for name, value in arrays.items()}


def run_c(
    arrays: Arrays,
    sizes: dict[str, Any],
    tokens: np.ndarray,
    *,
    base: float = 10_000.0,
    eps: float = 1e-5,
    factor: float = 1.0,
) -> np.ndarray:
    """Compute llama2.c's `forward` in float64, one token after another; return the logits.

    Args:
      arrays: the weights; see `arrays_of`.
      sizes: the sizes of the network; see `SIZES`.
      tokens: the tokens, `[n, t]`.
      base: the rotary base; the default is llama2.c's.
      eps: the constant that norms add to the mean square; the default is llama2.c's.
      factor: the number by which positions are divided; llama2.c does not divide them.
    """
    a = {name: value.astype(np.float64) for name, value in arrays.items()}
    h, g, k = sizes["heads"], sizes["kv_heads"], sizes["width"] // sizes["heads"]

    def norm(x, weight):
        return weight * x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps)

    def turned(x, position):  # x: [heads, k]; neighbouring coordinates are rotated in pairs
        angles = position / factor * base ** (-np.arange(0, k, 2) / k)
        even, odd = x[:, ::2], x[:, 1::2]
        result = np.empty_like(x)
        result[:, ::2] = even * np.cos(angles) - odd * np.sin(angles)
        result[:, 1::2] = even * np.sin(angles) + odd * np.cos(angles)
        return result

    outputs = []
    for row in tokens:
        keys: list[list[np.ndarray]] = [[] for _ in range(sizes["blocks"])]
        values: list[list[np.ndarray]] = [[] for _ in range(sizes["blocks"])]
        for position, token in enumerate(row):
            x = a["embedding"][token]
            for b in range(sizes["blocks"]):
                y = norm(x, a["attention_norm"][b])
                query = turned((a["wq"][b] @ y).reshape(h, k), position)
                keys[b].append(turned((a["wk"][b] @ y).reshape(g, k), position))
                values[b].append((a["wv"][b] @ y).reshape(g, k))
                past, seen = np.stack(keys[b]), np.stack(values[b])  # [t, g, k]
                heads = []
                for i in range(h):
                    scores = past[:, i // (h // g)] @ query[i] / np.sqrt(k)
                    weights = np.exp(scores - scores.max())
                    heads.append(weights / weights.sum() @ seen[:, i // (h // g)])
                x = x + a["wo"][b] @ np.concatenate(heads)
                y = norm(x, a["ffn_norm"][b])
                gate = a["w1"][b] @ y
                x = x + a["w2"][b] @ (gate / (1 + np.exp(-gate)) * (a["w3"][b] @ y))
            outputs.append(a.get("output", a["embedding"]) @ norm(x, a["norm"]))
    return np.reshape(outputs, (*tokens.shape, -1))


def write_bin(path: Path, arrays: Arrays, sizes: dict[str, Any], version: int) -> Arrays:
    """Write a file in the format of llama2.c's export.py; return the arrays in the file."""
    s, tied = sizes, sizes["tied"]
    numbers = [s["width"], s["hidden"], s["blocks"], s["heads"], s["kv_heads"]]
    norms = [arrays["attention_norm"], arrays["ffn_norm"]]
    stored = dict(arrays)
    if version == 0:
        tables = np.zeros((2, s["length"], s["width"] // s["heads"] // 2))
        parts = [arrays["embedding"], norms[0], *(arrays[name] for name in MATRICES[:4]), norms[1]]
        parts += [*(arrays[name] for name in MATRICES[4:]), arrays["norm"], tables]
        parts += [] if tied else [arrays["output"]]
        data = struct.pack("<7i", *numbers, VOCABULARY if tied else -VOCABULARY, s["length"])
        path.write_bytes(data + b"".join(np.asarray(part, "<f4").tobytes() for part in parts))
        return stored
    header = struct.pack("<I8i", 0x616B3432, version, *numbers, VOCABULARY, s["length"])
    header += struct.pack("<B", tied) + (struct.pack("<i", 32) if version == 2 else b"")
    data = header.ljust(256, b"\0")
    data += b"".join(np.asarray(part, "<f4").tobytes() for part in (*norms, arrays["norm"]))
    for name in ("embedding", *MATRICES, *(() if tied else ("output",))):
        blocks = arrays[name] if arrays[name].ndim == 3 else arrays[name][None]
        read = []
        for w in blocks:
            if version == 1:
                data += np.asarray(w, "<f4").tobytes()
                read.append(w)
                continue
            groups = w.reshape(-1, 32)
            scales = (np.abs(groups).max(1) / 127).astype("<f4")
            integers = np.round(groups / scales[:, None]).astype("i1")
            data += integers.tobytes() + scales.tobytes()
            read.append((integers * scales[:, None]).reshape(w.shape))
        stored[name] = np.stack(read).reshape(arrays[name].shape)
    path.write_bytes(data)
    return stored


def llama2c(words: str, version: int, **changes: Any) -> Case:
    """Return the case of a llama2.c file, in which `changes` replace sizes of `SIZES`."""

    def make(folder: Path) -> tuple[Outputs, Outputs]:
        sizes = SIZES | changes
        stored = write_bin(folder / "model.bin", arrays_of(sizes), sizes, version)
        ours = lambda: logits(folder / "model.bin", TOKENS)  # noqa: E731
        return ours, lambda: run_c(stored, sizes, TOKENS)

    return Case(words, make)


def write_gguf(
    path: Path, arrays: Arrays, sizes: dict[str, Any], kind: str, **fields: Any
) -> Arrays:
    """Write a GGUF file as llama.cpp's converter does; matrices have the type `kind`.

    Returns the dequantised arrays of the file.
    """
    import gguf

    s, type_ = sizes, gguf.GGMLQuantizationType[kind]
    plain = gguf.GGMLQuantizationType.F32
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(s["length"])
    writer.add_embedding_length(s["width"])
    writer.add_block_count(s["blocks"])
    writer.add_feed_forward_length(s["hidden"])
    writer.add_head_count(s["heads"])
    writer.add_head_count_kv(s["kv_heads"])
    writer.add_layer_norm_rms_eps(fields.pop("eps", 1e-5))
    writer.add_rope_freq_base(fields.pop("base", 10_000.0))
    writer.add_vocab_size(VOCABULARY)
    for name, value in fields.items():
        types = {int: "UINT32", float: "FLOAT32", str: "STRING"}
        type_of_key = gguf.GGUFValueType[types[type(value)]]
        writer.add_key_value(f"llama.{name}", value, type_of_key)
    stored = {name: np.array(value) for name, value in arrays.items()}

    def add_tensor(name: str, value: np.ndarray, type_: Any) -> None:
        raw = gguf.quants.quantize(np.ascontiguousarray(value), type_)
        writer.add_tensor(name, raw, raw_dtype=type_)
        value[...] = gguf.quants.dequantize(raw, type_).reshape(value.shape)

    names = {"wq": "attn_q", "wk": "attn_k", "wv": "attn_v", "wo": "attn_output",
             "w1": "ffn_gate", "w2": "ffn_down", "w3": "ffn_up"}  # fmt: skip
    add_tensor("token_embd.weight", stored["embedding"], type_)
    add_tensor("output_norm.weight", stored["norm"], plain)
    if not s["tied"]:
        add_tensor("output.weight", stored["output"], type_)
    for b in range(s["blocks"]):
        add_tensor(f"blk.{b}.attn_norm.weight", stored["attention_norm"][b], plain)
        add_tensor(f"blk.{b}.ffn_norm.weight", stored["ffn_norm"][b], plain)
        for ours, theirs in names.items():
            add_tensor(f"blk.{b}.{theirs}.weight", stored[ours][b], type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stored


def gguf_case(words: str, kind: str = "F32", fields: Any = None, **changes: Any) -> Case:
    """Return the case of a GGUF file whose matrices have the type `kind`."""

    def make(folder: Path) -> tuple[Outputs, Outputs]:
        sizes, keys = SIZES | changes, dict(fields or {})
        stored = write_gguf(folder / "model.gguf", arrays_of(sizes), sizes, kind, **keys)
        # llama.cpp scales positions linearly unless the file contains another type.
        linear = keys.get("rope.scaling.type", "linear") == "linear"
        options = {
            "base": keys.get("base", 10_000.0), "eps": keys.get("eps", 1e-5),
            "factor": keys.get("rope.scaling.factor", 1.0) if linear else 1.0,
        }  # fmt: skip
        ours = lambda: logits(folder / "model.gguf", TOKENS)  # noqa: E731
        return ours, lambda: run_c(stored, sizes, TOKENS, **options)

    return Case(words, make)


def draw(kind: str, seed: str) -> Case:
    """Draw a case: a file of the kind 'llama2.c' or 'gguf' with random sizes.

    A 'llama2.c' file has a random version. A 'gguf' file has matrices of a random type and up to
    two random keys.
    """
    rng = random.Random(f"{seed} {kind}")
    heads = rng.choice((2, 4))
    sizes = {
        "width": rng.choice((32, 64)), "hidden": rng.choice((32, 96)), "blocks": rng.choice((1, 3)),
        "heads": heads, "kv_heads": rng.choice((1, heads)), "tied": rng.random() < 0.5,
        "length": rng.choice((9, 16)),
    }  # fmt: skip
    words = ", ".join(f"{name}={value}" for name, value in sizes.items())
    if kind == "llama2.c":
        version = rng.randrange(3)
        return llama2c(f"version {version}, {words}", version, **sizes)
    pool: dict[str, list[Any]] = {
        "eps": [1e-6, 0.01], "base": [500.0, 1e6], "rope.dimension_count": [16, 8],
        "attention.key_length": [16, 8], "attention.value_length": [16, 8],
        "attention.sliding_window": [3], "expert_count": [0, 2],
        "rope.scaling.type": ["none", "linear", "yarn"],
        "logit_scale": [0.5], "attention.scale": [0.3], "attention.layer_norm_epsilon": [0.1],
        "rope.scaling.factor": [2.0, 4.0], "attention.max_alibi_bias": [8.0], "mystery": [1],
        "embedding_scale": [2.0], "residual_scale": [2.0],
    }  # fmt: skip
    chosen = rng.sample(sorted(pool), k=rng.choice((0, 0, 1, 1, 2)))
    fields = {name: rng.choice(pool[name]) for name in chosen}
    type_ = rng.choice(("F32", "F32", "F16", "BF16", "Q8_0", "Q4_0"))
    return gguf_case(f"{type_}, {words}, {fields}", type_, fields, **sizes)


CASES: tuple[Case, ...] = (
    *(llama2c(f"llama2.c: version {version}", version) for version in range(3)),
    *(llama2c(f"llama2.c: version {v}, tied", v, tied=True) for v in range(3)),
    *(gguf_case(f"gguf: {kind}", kind) for kind in TYPES[:6]),
    gguf_case("gguf: tied", tied=True),
    gguf_case("gguf: base 500", fields={"base": 500.0}),
    gguf_case("gguf: rope.scaling.factor without a type", fields={"rope.scaling.factor": 4.0}),
    gguf_case("gguf: rope.scaling of the type none",
              fields={"rope.scaling.factor": 4.0, "rope.scaling.type": "none"}),
    gguf_case("gguf: a sliding window", fields={"attention.sliding_window": 3}),
    gguf_case("gguf: experts", fields={"expert_count": 2}),
    gguf_case("gguf: an unknown key", fields={"mystery": 1}),
)  # fmt: skip
