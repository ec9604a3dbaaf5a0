"""Parts put together to a model again, as parameters of `models.decoder`.

Either *merged*, every product multiplied out: attention is then multi-query attention whose keys
and values are the normalised rows themselves (identity projections); or *as they are*, the masked
factors side by side: wide heads, products for the other maps.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from slth_jax.models import Settings
from slth_jax.sources.recipe import Part, Recipe

Arrays = dict[str, np.ndarray]
_NAMES = {"in": "mlp.in", "gate": "mlp.gate", "out": "mlp.out"}


def merged_settings(recipe: Recipe) -> Settings:
    """Return the settings of the merged model."""
    s, one = recipe.settings, int(recipe.constant)
    rotary = s.positions == "rotary"
    return dataclasses.replace(
        s,
        num_kv_heads=1,
        head_width=2 * (s.width + one) * len(s.rotary) if rotary else s.width,
        value_width=s.width,
        rotary_repeat=s.width + one if rotary else 1,
        logit_scale=1.0,
        factor="linear",
        tied=False,
    )


def merged_block(recipe: Recipe, b: int, entries: Callable[[str], np.ndarray]) -> Arrays:
    """Return the parameters of block `b` with every product multiplied out.

    `entries` gives the matrices ``[count, rows, columns]`` of a part by its name.
    """
    s, one = recipe.settings, int(recipe.constant)
    d = s.width
    w = entries(f"{b}.qk")
    if s.positions == "rotary":
        frequencies = len(s.rotary)
        # [g, f, head, even or odd, d (+1), key unit] to [d (+1), (head, even or odd, f, key unit)]
        w = w.reshape(s.num_kv_heads, frequencies, -1, 2, d + one, d + one)
        w = w.transpose(4, 0, 2, 3, 1, 5).reshape(d + one, -1)
        keys = np.concatenate([np.tile(np.eye(d + one), (1, frequencies))] * 2, axis=1)
        keys[:, keys.shape[1] // 2 :] = 0  # odd components are masked
    else:
        w = w.reshape(s.num_heads, d + one, d).transpose(1, 0, 2).reshape(d + one, -1)
        keys = np.eye(d + one, d)
    found = _split("attn.q", w, recipe) | _split("attn.k", keys, recipe)
    w = entries(f"{b}.vo").reshape(s.num_heads, d, d + one)  # [head, output, input]
    found["attn.v"] = np.eye(d)
    found["attn.o"] = w[:, :, :d].transpose(0, 2, 1).reshape(-1, d)
    if one:
        found["attn.o.bias"] = w[:, :, d].sum(axis=0)
    if recipe.layers:
        for kind in ("in", "gate", "out") if s.gated else ("in", "out"):
            w = entries(f"{b}.{kind}")[0]
            w = w if _inputs_first(recipe, f"{b}.{kind}") else w.T
            found |= _split(_NAMES[kind], w, recipe)
    return _float32(found)


def merged_ends(recipe: Recipe, entries: Callable[[str], np.ndarray]) -> Arrays:
    """Return the parameters outside the blocks with every product multiplied out."""
    found = {"wte": entries("wte")[0]}
    if recipe.settings.positions == "learned":
        found["wpe"] = entries("wpe")[0]
    w = entries("unembed")[0]
    w = w if _inputs_first(recipe, "unembed") else w.T
    return _float32(found | _split("unembed", w, recipe))


def factored_settings(recipe: Recipe) -> Settings:
    """Return the settings of the masked source as it is."""
    s = recipe.settings
    parts = {part.name: part for part in recipe.parts}
    rotary = s.positions == "rotary"
    units = parts["0.qk"].units
    return dataclasses.replace(
        s,
        head_width=2 * units * len(s.rotary) if rotary else units,
        value_width=parts["0.vo"].units,
        rotary_repeat=units if rotary else 1,
        logit_scale=1.0,
        factor=recipe.form,
        tied=False,
    )


def factored(recipe: Recipe, factors: Callable[[Part], tuple[np.ndarray, np.ndarray]]) -> Arrays:
    """Return all parameters of the masked source as it is, blocks stacked.

    `factors` gives the masked factors ``left [count, rows, units], right [count, units, columns]``
    of a part.
    """
    s, one = recipe.settings, int(recipe.constant)
    d = s.width
    found: dict[str, np.ndarray] = {}
    blocks: dict[str, list[np.ndarray]] = {}
    for part in recipe.parts:
        left, right = factors(part)
        number, _, kind = part.name.rpartition(".")
        if kind == "qk":
            keys, queries = _factored_qk(recipe, left, right)
            named = _split("attn.k", keys, recipe) | _split("attn.q", queries, recipe)
        elif kind == "vo":
            values = right.transpose(2, 0, 1).reshape(d + one, -1)
            outs = left.reshape(s.num_kv_heads, -1, d, part.units).transpose(0, 1, 3, 2)
            named = _split("attn.v", values, recipe) | {"attn.o": outs.reshape(-1, d)}
        else:
            first, second = (left[0], right[0]) if part.rows_are_inputs else (right[0].T, left[0].T)
            name = _NAMES.get(kind, kind)
            named = {f"{name}.second": second}
            plain = kind in ("wte", "wpe")  # one-hot rows have no constant coordinate
            named |= {f"{name}.first": first} if plain else _split(f"{name}.first", first, recipe)
        for name, value in _float32(named).items():
            if number:
                blocks.setdefault(f"h.{name}", []).append(value)
            else:
                found[name] = value
    return found | {name: np.stack(values) for name, values in blocks.items()}


def _factored_qk(recipe: Recipe, left: np.ndarray, right: np.ndarray):
    """Return keys and queries `[d (+ 1), heads * width]` of masked factors."""
    s, one = recipe.settings, int(recipe.constant)
    d, g, n = s.width, s.num_kv_heads, right.shape[1]
    if s.positions != "rotary":
        keys = right.transpose(2, 0, 1).reshape(d, -1)
        keys = np.concatenate([keys, np.zeros((one, keys.shape[1]))])
        queries = left.reshape(g, -1, d + one, n).transpose(2, 0, 1, 3)
        return keys, queries.reshape(d + one, -1)
    frequencies = len(s.rotary)
    even = right.reshape(g, frequencies, n, d + one).transpose(3, 0, 1, 2)
    keys = np.stack([even, np.zeros_like(even)], axis=2).reshape(d + one, -1)
    queries = left.reshape(g, frequencies, -1, 2, d + one, n).transpose(4, 0, 2, 3, 1, 5)
    return keys, queries.reshape(d + one, -1)


def _inputs_first(recipe: Recipe, name: str) -> bool:
    whole = dataclasses.replace(recipe, keep=())
    return next(part for part in whole.parts if part.name == name).rows_are_inputs


def _split(name: str, w: np.ndarray, recipe: Recipe) -> Arrays:
    """Return a matrix `[inputs (+ 1), outputs]` as weights and, with the constant, a bias."""
    return {name: w[:-1], f"{name}.bias": w[-1]} if recipe.constant else {name: w}


def _float32(named: Arrays) -> Arrays:
    return {name: np.ascontiguousarray(value, np.float32) for name, value in named.items()}
