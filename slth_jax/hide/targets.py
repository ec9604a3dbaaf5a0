"""Return a trained model as matrices, to be approximated by products of random matrices.

If a norm precedes linear maps, its gain and shift are folded into these maps. If a norm follows a
residual sum, its gain and shift become a separate map. A bias is stored as an extra row of its
matrix; the constant coordinate 1 of the input multiplies this row. Everything is computed in NumPy
float64. `factored.spec` lists the parts.
"""

import math
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from slth_jax import checks
from slth_jax.factored import Part, Spec, assemble
from slth_jax.models.weights import Reader

Arrays = Mapping[str, np.ndarray]
# Maps the kind of a part to the name of the matrix and of the norm that precedes it.
_MAPS = {
    "q": ("attn.q", "ln_1"),
    "k": ("attn.k", "ln_1"),
    "v": ("attn.v", "ln_1"),
    "o": ("attn.o", ""),
    "in": ("mlp.in", "ln_2"),
    "gate": ("mlp.gate", "ln_2"),
    "out": ("mlp.out", ""),
    "gain": ("identity", "ln_f"),
    "unembed": ("unembed", "ln_f"),
    "ln_e": ("identity", "ln_e"),
    "ln_1": ("identity", "ln_1"),
    "ln_2": ("identity", "ln_2"),
}
# The gain and shift of these norms are folded into other maps only if the norms precede these maps.
_IN_BLOCKS = ("ln_1", "ln_2")


def traits(reader: Reader) -> dict[str, bool]:
    """Return the fields 'constant' and 'layers' of `Spec`, derived from the model's arrays."""
    names = {*reader.ends(), *reader.block(0)}
    constant = any(name.endswith(".bias") for name in names)
    return {"constant": constant, "layers": "mlp.in" in names}


def check(reader: Reader) -> None:
    """Raise an error if rotary frequencies are repeated or an array has non-finite entries."""
    s = reader.settings
    if s.positions == "rotary" and s.rotary_repeat != 1:
        raise checks.fail("model", "one with each rotary frequency once", s.rotary_repeat)
    reader.check_entries()


# The biases of a rotary query or key are outliers if their norm divided by the matrix's norm is
# above this number. Each additional sample halves their error. Samples are added until the ratio,
# halved once per added sample, is at most half of this number. The number was measured on a random
# Qwen2 with biases of 100.
_OUTLIER = 12.0


def finer(reader: Reader, spec: Spec) -> tuple[tuple[str, int], ...]:
    """Return the matrices whose biases are outliers, with the number of samples that each needs.

    A bias of 100 in a query or key has a hundred times the error of an ordinary entry. If positions
    are rotary, all of this error reaches the logits of attention. Queries and keys have separate
    matrices only if attention is factored.
    """
    rotary = spec.settings.positions == "rotary"
    if not (rotary and spec.constant and spec.attention == "factored" and spec.bands is None):
        return ()
    if not {"attn.q.bias", "attn.k.bias"} & reader.block(0).keys():
        return ()
    targets, pairs = Targets(reader, spec), []
    for part in (part for part in spec.parts if part.kind in ("q", "k")):
        matrix = targets.product(part, 0)
        matrix = matrix if part.rows_are_inputs else matrix.T
        rest = float(np.linalg.norm(matrix[:-1])) or 1.0
        ratio = float(np.linalg.norm(matrix[-1])) / rest
        if ratio > _OUTLIER:
            samples = spec.samples + math.ceil(math.log2(2 * ratio / _OUTLIER))
            pairs.append((part.name, min(samples, 64)))
    return tuple(pairs)


class Targets:
    """The matrices of a model's parts, computed when needed; the last block read is cached."""

    def __init__(self, reader: Reader, spec: Spec):
        """Store the arguments; nothing is read yet."""
        self._reader, self._spec = reader, spec
        self._cached: tuple[int | None, Arrays] | None = None

    def product(self, part: Part, g: int) -> Float[np.ndarray, "rows columns"]:
        """Return the matrix of product `g` of a part in float32.

        Raises:
          ValueError: an entry overflows float32.
        """
        arrays = self._arrays(part.block)
        if part.kind in assemble.ONE_HOT:
            matrix = arrays[part.kind]
        elif part.kind == "qk":
            matrix = self._query_key(arrays, g)
        elif part.kind == "vo":
            matrix = self._value_output(arrays, g)
        else:
            matrix = self._folded(arrays, *_MAPS[part.kind])
            matrix = matrix if part.rows_are_inputs else matrix.T
        with np.errstate(over="ignore"):
            matrix = matrix.astype(np.float32)
        if not np.isfinite(matrix).all():
            raise checks.fail(f"the matrix {part.name}", "within float32", "infinite entries")
        return matrix

    def _arrays(self, block: int | None) -> Arrays:
        if self._cached is None or self._cached[0] != block:
            arrays = self._reader.ends() if block is None else self._reader.block(block)
            arrays["identity"] = np.eye(self._spec.settings.width, dtype=np.float32)
            if block is None:
                arrays.setdefault("unembed", arrays["wte"].T)  # the embedding is tied
            self._cached = block, arrays
        return self._cached[1]

    def _query_key(self, arrays: Arrays, g: int) -> np.ndarray:
        """Return the query-key matrices of the query heads that share a key/value head."""
        s = self._spec.settings
        rotary = s.positions == "rotary"
        kv_head, f = divmod(g, len(s.rotary)) if rotary else (g, 0)
        queries = self._folded(arrays, "attn.q", "ln_1")  # [o, h k]
        keys = self._folded(arrays, "attn.k", "ln_1")  # [o, g k]
        k = keys[:, kv_head * s.head_width : (kv_head + 1) * s.head_width]
        matrices = []
        for head in self._heads_of(kv_head):
            q = s.logit_scale * queries[:, head * s.head_width : (head + 1) * s.head_width]
            if not rotary:
                matrices.append(q @ k[: s.width].T)
                continue
            half = s.head_width // 2
            even_q, odd_q, even_k, odd_k = (
                w[:, [i]] for w, i in ((q, f), (q, f + half), (k, f), (k, f + half))
            )
            # x_i A x_j cos((i-j) t) - x_i S x_j sin((i-j) t)
            matrices.append(even_q @ even_k.T + odd_q @ odd_k.T)
            matrices.append(odd_q @ even_k.T - even_q @ odd_k.T)
        return np.concatenate(matrices)

    def _value_output(self, arrays: Arrays, kv_head: int) -> np.ndarray:
        """Return the value-output matrices of all query heads that share the head `kv_head`."""
        s = self._spec.settings
        values = self._folded(arrays, "attn.v", "ln_1")
        v = values[:, kv_head * s.value_width : (kv_head + 1) * s.value_width]  # [o, v]
        matrices = []
        for head in self._heads_of(kv_head):
            w_o = np.asarray(arrays["attn.o"], np.float64)
            merged = v @ w_o[head * s.value_width : (head + 1) * s.value_width]
            if "attn.o.bias" in arrays:  # attention weights sum to one; each head takes a share
                merged[-1] += arrays["attn.o.bias"] / s.num_heads
            matrices.append(merged.T)
        return np.concatenate(matrices)

    def _heads_of(self, kv_head: int) -> range:
        group = self._spec.settings.num_heads // self._spec.settings.num_kv_heads
        return range(kv_head * group, (kv_head + 1) * group)

    def _folded(self, arrays: Arrays, name: str, norm: str) -> Float[np.ndarray, "inputs outputs"]:
        """Return ``[gain W; shift W + b]``; without a constant coordinate there is no last row."""
        w = np.asarray(arrays[name], np.float64)
        if self._spec.settings.post_norm and norm in _IN_BLOCKS and name != "identity":
            norm = ""  # gain and shift have already been applied to the rows that the map reads
        rows = w * arrays[f"{norm}.gain"][:, None] if f"{norm}.gain" in arrays else w
        if not self._spec.constant:
            return rows
        constant = np.zeros(w.shape[1])
        if f"{norm}.bias" in arrays:
            constant = constant + np.asarray(arrays[f"{norm}.bias"], np.float64) @ w
        if f"{name}.bias" in arrays:
            constant = constant + arrays[f"{name}.bias"]
        return np.concatenate([rows, constant[None]])
