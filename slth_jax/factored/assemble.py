"""Assemble the parts of a random network into parameters for `models.decoder`.

There are two forms. In the *merged* form every product is multiplied out. If `Spec.attention` is
'merged', attention becomes multi-query attention whose keys and values are the normalised rows z
themselves (identity projections). In the *unmerged* form the masked factors stay separate: heads of
merged attention are as wide as the number of hidden units, and every other map is a product of two
matrices.

The letters in shapes are: d the width, o the inputs of a map (d, or d + 1 if there is a constant
coordinate), h query heads, g key/value heads, f rotary frequencies, n hidden units.
"""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float

from slth_jax.factored.part import Part
from slth_jax.factored.spec import Spec
from slth_jax.models import Settings
from slth_jax.models.weights import stacked

Arrays = dict[str, np.ndarray]
# The type of a function that returns the matrices `[count, rows, columns]` of a part.
Entries = Callable[[Part], np.ndarray]
# The type of a function that returns the masked factors of a part, ``left [count, rows, n], right
# [count, n, columns]``.
Factors = Callable[[Part], tuple[np.ndarray, np.ndarray]]
ONE_HOT = ("wte", "wpe", "wtt")  # maps with one-hot inputs, which have no constant coordinate
_NAMES = {
    "in": "mlp.in", "gate": "mlp.gate", "out": "mlp.out",
    "q": "attn.q", "k": "attn.k", "v": "attn.v", "o": "attn.o",
    "ln_e": "ln_e.map", "ln_1": "ln_1.map", "ln_2": "ln_2.map",
}  # fmt: skip


def merged_settings(spec: Spec) -> Settings:
    """Return the settings of the merged model, whose products are multiplied out."""
    s = dataclasses.replace(spec.settings, factor="linear", tied=False)
    if spec.attention == "factored":
        return s
    rotary = s.positions == "rotary"
    return dataclasses.replace(
        s,
        num_kv_heads=1,
        head_width=2 * spec.inputs * len(s.rotary) if rotary else s.width,
        value_width=s.width,
        rotary_repeat=spec.inputs if rotary else 1,
        logit_scale=1.0,
    )


def merged_block(spec: Spec, block: int, entries: Entries) -> Arrays:
    """Return the parameters of one block of the merged model."""
    params: Arrays = {}
    for part in (part for part in spec.every_part if part.block == block):
        w = entries(part)
        if part.kind == "qk":
            queries, keys = _merged_qk(spec, w)
            params |= _split("attn.q", queries, spec) | _split("attn.k", keys, spec)
        elif part.kind == "vo":
            params |= _merged_vo(spec, w)
        else:
            params |= _split(_NAMES[part.kind], _inputs_first(part, w), spec)
    return _float32(params)


def merged_ends(spec: Spec, entries: Entries) -> Arrays:
    """Return the parameters of the merged model that lie outside the blocks."""
    params: Arrays = {}
    for part in (part for part in spec.every_part if part.block is None):
        w = _inputs_first(part, entries(part))
        if part.kind == "gain":
            params |= _split("unembed", w @ params["wte"].T, spec)
        elif part.kind in ONE_HOT:
            params[part.kind] = w
        else:
            params |= _split(_NAMES.get(part.kind, part.kind), w, spec)
    return _float32(params)


def _merged_qk(spec: Spec, w: Float[np.ndarray, "count rows columns"]):
    """Return query weights `[o, h width]`, and key weights `[o, width]` that copy the row z."""
    s, o = spec.settings, spec.inputs
    if s.positions != "rotary":
        # [h, o, d] to [o, (h, d)]
        queries = w.reshape(s.num_heads, o, s.width).transpose(1, 0, 2).reshape(o, -1)
        return queries, np.eye(o, s.width)
    f = len(s.rotary)
    # [g, f, head, even or odd, o, key unit] to [o, (head, even or odd, f, key unit)]
    queries = w.reshape(s.num_kv_heads, f, -1, 2, o, o).transpose(4, 0, 2, 3, 1, 5).reshape(o, -1)
    keys = np.concatenate([np.tile(np.eye(o), (1, f))] * 2, axis=1)
    keys[:, keys.shape[1] // 2 :] = 0  # odd components are masked
    return queries, keys


def _merged_vo(spec: Spec, w: Float[np.ndarray, "count rows columns"]) -> Arrays:
    """Return value weights that copy the row z, and the output weights `[h d, d]`."""
    d = spec.settings.width
    w = w.reshape(spec.settings.num_heads, d, spec.inputs)  # [head, output, input]
    params = {"attn.v": np.eye(d), "attn.o": w[:, :, :d].transpose(0, 2, 1).reshape(-1, d)}
    if spec.constant:
        params["attn.o.bias"] = w[:, :, d].sum(axis=0)
    return params


def masked_settings(spec: Spec) -> Settings:
    """Return the settings of the unmerged model, whose masked factors stay separate."""
    s = dataclasses.replace(spec.settings, factor=spec.form, tied=False)
    if spec.attention == "factored":
        return s
    rotary = s.positions == "rotary"
    units = {part.kind: part.units for part in spec.every_part}
    return dataclasses.replace(
        s,
        head_width=2 * units["qk"] * len(s.rotary) if rotary else units["qk"],
        value_width=units["vo"],
        rotary_repeat=units["qk"] if rotary else 1,
        logit_scale=1.0,
    )


def masked(spec: Spec, factors: Factors) -> Arrays:
    """Return all parameters of the unmerged model, with the blocks stacked."""
    ends: Arrays = {}
    blocks: list[Arrays] = [{} for _ in range(spec.settings.num_blocks)]
    for part in spec.parts:
        left, right = factors(part)
        if part.kind == "qk":
            keys, queries = _factored_qk(spec, left, right)
            params = _split("attn.k", keys, spec) | _split("attn.q", queries, spec)
        elif part.kind == "vo":
            params = _factored_vo(spec, left, right)
        elif part.kind == "gain":
            # The last map is the gain times the transposed embedding, so it has four factors.
            params = _two_factors("unembed.first", part, left[0], right[0], spec)
            params["unembed.second.first"] = ends["wte.second"].T
            params["unembed.second.second"] = ends["wte.first"].T
        else:
            params = _two_factors(_NAMES.get(part.kind, part.kind), part, left[0], right[0], spec)
        (ends if part.block is None else blocks[part.block]).update(_float32(params))
    return stacked(ends, blocks)


def _factored_qk(
    spec: Spec, left: Float[np.ndarray, "count rows n"], right: Float[np.ndarray, "count n columns"]
):
    """Return key weights `[o, g width]` and query weights `[o, h width]` of the unmerged model."""
    s, o = spec.settings, spec.inputs
    g, n = s.num_kv_heads, right.shape[1]
    if s.positions != "rotary":
        keys = right.transpose(2, 0, 1).reshape(s.width, -1)
        keys = np.concatenate([keys, np.zeros((o - s.width, keys.shape[1]))])
        queries = left.reshape(g, -1, o, n).transpose(2, 0, 1, 3)
        return keys, queries.reshape(o, -1)
    f = len(s.rotary)
    even = right.reshape(g, f, n, o).transpose(3, 0, 1, 2)  # [o, g, f, n]
    keys = np.stack([even, np.zeros_like(even)], axis=2).reshape(o, -1)
    queries = left.reshape(g, f, -1, 2, o, n).transpose(4, 0, 2, 3, 1, 5)
    return keys, queries.reshape(o, -1)


def _factored_vo(
    spec: Spec, left: Float[np.ndarray, "count rows n"], right: Float[np.ndarray, "count n columns"]
) -> Arrays:
    d, n = spec.settings.width, right.shape[1]
    values = right.transpose(2, 0, 1).reshape(spec.inputs, -1)
    outputs = left.reshape(spec.settings.num_kv_heads, -1, d, n).transpose(0, 1, 3, 2)
    return _split("attn.v", values, spec) | {"attn.o": outputs.reshape(-1, d)}


def _two_factors(
    name: str,
    part: Part,
    left: Float[np.ndarray, "rows n"],
    right: Float[np.ndarray, "n columns"],
    spec: Spec,
) -> Arrays:
    first, second = (left, right) if part.rows_are_inputs else (right.T, left.T)
    one_hot = part.kind in ONE_HOT
    params = {f"{name}.first": first} if one_hot else _split(f"{name}.first", first, spec)
    return params | {f"{name}.second": second}


def _inputs_first(
    part: Part, w: Float[np.ndarray, "1 rows columns"]
) -> Float[np.ndarray, "inputs outputs"]:
    return w[0] if part.rows_are_inputs else w[0].T


def _split(name: str, w: Float[np.ndarray, "o outputs"], spec: Spec) -> Arrays:
    """Split a matrix into weights and, if there is a constant coordinate, a bias (last row)."""
    return {name: w[:-1], f"{name}.bias": w[-1]} if spec.constant else {name: w}


def _float32(named: Mapping[str, np.ndarray]) -> Arrays:
    return {name: np.ascontiguousarray(value, np.float32) for name, value in named.items()}
