"""The parts of a trained model as matrices: what a random source has to meet.

Gains and shifts of the normalisation fold into the maps behind them, biases stand in the row of the
constant coordinate, in NumPy float64. See `sources.recipe` for the parts.
"""

from collections.abc import Mapping

import numpy as np

from slth_jax import checks
from slth_jax.models.weights import Reader
from slth_jax.sources.recipe import Part, Recipe

Arrays = Mapping[str, np.ndarray]


def traits(reader: Reader) -> dict[str, bool]:
    """Return what `Recipe` has to know of a model: 'constant' and 'layers'."""
    names = {*reader.ends(), *reader.block(0)}
    constant = any(name.endswith(".bias") for name in names)
    return {"constant": constant, "layers": "mlp.in" in names}


def check(reader: Reader) -> None:
    """Refuse a model that this construction does not cover."""
    s = reader.settings
    if s.positions == "rotary" and s.rotary_repeat != 1:
        raise checks.fail("model", "one with each rotary frequency once", s.rotary_repeat)


class Targets:
    """The matrices of the parts of one model, computed when asked for; one block is kept."""

    def __init__(self, reader: Reader, recipe: Recipe):
        """Read nothing yet."""
        self._reader, self._recipe = reader, recipe
        self._held: tuple[int | None, Arrays] | None = None

    def product(self, part: Part, g: int) -> np.ndarray:
        """Return the matrix `[rows, columns]` of product `g` of a part, float32.

        Raises:
          ValueError: it overflows float32.
        """
        number, _, kind = part.name.rpartition(".")
        arrays = self._arrays(int(number) if number else None)
        with np.errstate(over="ignore"):
            found = getattr(self, f"_{kind}")(arrays, part, g).astype(np.float32)
        if not np.isfinite(found).all():
            raise checks.fail(f"the matrix {part.name}", "within float32", "infinite entries")
        return found

    def _arrays(self, block: int | None) -> Arrays:
        if self._held is None or self._held[0] != block:
            arrays = self._reader.ends() if block is None else self._reader.block(block)
            self._held = block, arrays
        return self._held[1]

    def _wte(self, arrays: Arrays, part: Part, g: int) -> np.ndarray:
        return arrays["wte"]

    def _wpe(self, arrays: Arrays, part: Part, g: int) -> np.ndarray:
        return arrays["wpe"]

    def _qk(self, arrays: Arrays, part: Part, g: int) -> np.ndarray:
        s = self._recipe.settings
        rotary = s.positions == "rotary"
        head, f = divmod(g, len(s.rotary)) if rotary else (g, 0)
        queries = self._folded(arrays, "attn.q", "ln_1")
        keys = self._folded(arrays, "attn.k", "ln_1")
        k = keys[:, head * s.head_width : (head + 1) * s.head_width]
        scale = s.head_width**-0.5 if s.logit_scale is None else s.logit_scale
        found = []
        for h in self._heads_of(head):
            q = scale * queries[:, h * s.head_width : (h + 1) * s.head_width]
            if not rotary:
                found.append(q @ k[: s.width].T)
                continue
            half = s.head_width // 2
            even_q, odd_q, even_k, odd_k = (
                w[:, [i]] for w, i in ((q, f), (q, f + half), (k, f), (k, f + half))
            )
            # x_i A x_j cos((i-j) t) - x_i S x_j sin((i-j) t)
            found.append(even_q @ even_k.T + odd_q @ odd_k.T)
            found.append(odd_q @ even_k.T - even_q @ odd_k.T)
        return np.concatenate(found)

    def _vo(self, arrays: Arrays, part: Part, g: int) -> np.ndarray:
        s = self._recipe.settings
        values = self._folded(arrays, "attn.v", "ln_1")
        v = values[:, g * s.value_width : (g + 1) * s.value_width]
        found = []
        for h in self._heads_of(g):
            o = np.asarray(arrays["attn.o"], np.float64)
            merged = v @ o[h * s.value_width : (h + 1) * s.value_width]
            if "attn.o.bias" in arrays:  # attention weights sum to one; each head takes its share
                merged[-1] += arrays["attn.o.bias"] / s.num_heads
            found.append(merged.T)
        return np.concatenate(found)

    def _in(self, arrays: Arrays, part: Part, g: int) -> np.ndarray:
        return self._sided(self._folded(arrays, "mlp.in", "ln_2"), part)

    def _gate(self, arrays: Arrays, part: Part, g: int) -> np.ndarray:
        return self._sided(self._folded(arrays, "mlp.gate", "ln_2"), part)

    def _out(self, arrays: Arrays, part: Part, g: int) -> np.ndarray:
        return self._sided(self._folded(arrays, "mlp.out", ""), part)

    def _unembed(self, arrays: Arrays, part: Part, g: int) -> np.ndarray:
        if "unembed" not in arrays:
            arrays = {**arrays, "unembed": arrays["wte"].T}
        return self._sided(self._folded(arrays, "unembed", "ln_f"), part)

    def _heads_of(self, kv_head: int) -> range:
        group = self._recipe.settings.num_heads // self._recipe.settings.num_kv_heads
        return range(kv_head * group, (kv_head + 1) * group)

    def _folded(self, arrays: Arrays, name: str, norm: str) -> np.ndarray:
        """Return ``[gain W; shift W + b]`` `[inputs (+ 1), outputs]` in float64."""
        w = np.asarray(arrays[name], np.float64)
        rows = w * arrays[f"{norm}.gain"][:, None] if f"{norm}.gain" in arrays else w
        if not self._recipe.constant:
            return rows
        constant = np.zeros(w.shape[1])
        if f"{norm}.bias" in arrays:
            constant = constant + np.asarray(arrays[f"{norm}.bias"], np.float64) @ w
        if f"{name}.bias" in arrays:
            constant = constant + arrays[f"{name}.bias"]
        return np.concatenate([rows, constant[None]])

    @staticmethod
    def _sided(w: np.ndarray, part: Part) -> np.ndarray:
        return w if part.rows_are_inputs else w.T
