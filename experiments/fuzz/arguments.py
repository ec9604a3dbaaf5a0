"""Calls of public functions with one or two unexpected arguments.

`TABLE` lists the public functions. For each of them, `CALLS` contains a function that takes a
random generator and returns a call of the public function. Huge integers are not drawn for
arguments that are sizes of arrays.
"""

import dataclasses
import random
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments.fuzz.mutations import NASTY
from slth_jax import (
    attention,
    construction,
    edge_popup,
    guarantee,
    hide,
    initializers,
    models,
    modules,
    subset_sum,
    supermask,
    sweep,
    theory,
    ticket,
    transformer,
)

KEY = jax.random.key(0, impl="threefry2x32")
SHAPE: dict[str, Any] = {"num_heads": 1, "d_in": 2, "d_out": 2}
TARGET = initializers.theory_attention(KEY, n_k=2, n_v=2, **SHAPE)
SOURCE = initializers.theory_attention(jax.random.fold_in(KEY, 1), n_k=12, n_v=12, **SHAPE)
MASKS = construction.prune_attention(SOURCE, TARGET, construction="proof")
CROSS = initializers.theory_attention(KEY, n_k=2, n_v=2, d_memory=(3, 1), **SHAPE)
MEMORY = jnp.ones((4, 3)), jnp.ones((4, 1))
X = jnp.ones((3, 2))
MERGED = attention.merge(TARGET)
SETTINGS = models.make_settings(
    vocab_size=7, width=4, num_blocks=1, num_heads=2, hidden_width=4, max_length=6
)
PARAMS = models.initialise(KEY, SETTINGS)
ENCODER = dataclasses.replace(SETTINGS, causal=False, states=True, outputs=4, tied=False)
ENCODER_PARAMS = models.initialise(KEY, ENCODER)


def model_of(settings: models.Settings, params: Mapping[str, Any]) -> hide.Model:
    """Return a `hide.Model` that yields the arrays of `params` block by block."""
    arrays = {name: np.asarray(array) for name, array in params.items()}
    return hide.Model(
        settings,
        lambda: {name: array for name, array in arrays.items() if not name.startswith("h.")},
        lambda b: {name[2:]: array[b] for name, array in arrays.items() if name.startswith("h.")},
    )


MODEL, ENCODER_MODEL = model_of(SETTINGS, PARAMS), model_of(ENCODER, ENCODER_PARAMS)
BLOCKS = (transformer.Block(TARGET, (transformer.Linear(jnp.ones((2, 2))),)),)
TOKENS = np.zeros((1, 4), np.int32)
TRAINING = edge_popup.Training(steps=2, optimizer=optax.sgd(0.1))
ARRAYS: list[Any] = [
    np.zeros(0, np.float32), np.zeros((0, 2), np.float32), np.float32(np.nan), np.full(4, np.inf),
    np.array(["a", "b"]), np.array([None, 1], object), np.zeros((2, 2), complex), np.zeros(3, bool),
    np.arange(4), np.zeros((1, 1, 1, 1, 1), np.float32), np.full((3, 2), 3e38, np.float32),
    np.float64(1e300), np.zeros((2, 2), ">f4"), jnp.zeros((3, 2), jnp.bfloat16), KEY,
]  # fmt: skip
HUGE = (2**31, 2**32)


def _loss(params, batch):
    return jnp.sum((batch @ params["w"]) ** 2)


def _trial(key, hparams):
    return {"error": jax.random.normal(key) * hparams.get("a", 1)}


def _linear() -> nnx.Linear:
    return nnx.Linear(4, 2, rngs=nnx.Rngs(0))


def _masked_call(**options: Any) -> Any:
    """Wrap a module in `Supermask` and call it."""
    return modules.Supermask(**options)(jnp.ones((1, 4)))


# Each entry: a function, valid arguments, and the names of the arguments that are sizes of arrays.
TABLE: list[tuple[Callable[..., Any], Mapping[str, Any], tuple[str, ...]]] = [
    (subset_sum.solve, {"samples": np.ones((2, 4), np.float32), "value": np.ones(2, np.float32),
                        "max_exact": 4}, ()),
    (initializers.theory_attention, {"key": KEY, "n_k": 4, "n_v": 4, "padded": 4, "d_memory": 3,
                                     **SHAPE},
     ("num_heads", "d_in", "d_out", "n_k", "n_v", "padded", "d_memory")),
    (initializers.xavier_attention, {"key": KEY, "n_k": 4, "n_v": 4, **SHAPE},
     ("num_heads", "d_in", "d_out", "n_k", "n_v")),
    (attention.apply, {"params": TARGET, "x": X, "attn_mask": None, "queries": None,
                       "block_size": None, "precision": "highest"}, ()),
    (attention.apply, {"params": CROSS, "x": X, "memory": MEMORY,
                       "attn_mask": np.ones((3, 4), bool)}, ()),
    (attention.error, {"ticket": CROSS, "target": CROSS, "x": X, "memory": MEMORY}, ()),
    (attention.apply_merged, {"merged": MERGED, "x": X, "attn_mask": None}, ()),
    (attention.merge, {"params": TARGET}, ()),
    (attention.pattern, {"params": TARGET, "x": X, "attn_mask": None}, ()),
    (transformer.apply, {"blocks": BLOCKS, "x": X, "attn_mask": None, "queries": None}, ()),
    (attention.error, {"ticket": TARGET, "target": TARGET, "x": X}, ()),
    (attention.from_torch, {"source": TARGET, "num_heads": 1}, ()),
    (attention.from_flax, {"source": TARGET}, ()),
    (attention.causal_mask, {"length": 3}, ("length",)),
    (construction.prune_product, {"left": np.ones((2, 6), np.float32), "construction": "proof",
                                  "right": np.ones((6, 2), np.float32),
                                  "target": np.ones((2, 2), np.float32)}, ()),
    (construction.prune_attention, {"source": SOURCE, "target": TARGET,
                                    "construction": "proof"}, ()),
    (construction.prune_relu_layer, {"w1": np.ones((8, 2), np.float32), "construction": "proof",
                                     "w2": np.ones((2, 8), np.float32),
                                     "target": np.ones((2, 2), np.float32)}, ()),
    (construction.prune_transformer, {"source": [], "target": []}, ()),
    (construction.apply_masks, {"source": SOURCE, "masks": MASKS}, ()),
    (construction.shift, {"shift_units": 2, "columns": 2, "reroll": 0.1}, ()),
    (construction.band, {"bits": 2, "states": 4}, ()),
    (construction.encode_matrix, {"key": KEY, "target": np.ones((2, 4), np.float32), "bits": 1,
                                  "states": 2, "source": "uniform", "scale": 1.0}, ()),
    (construction.find_width, {"target": TARGET, "error": 10.0, "key": KEY, "seeds": 1,
                               "largest": 16, "max_norm": 1.0, "inputs": None}, ()),
    (guarantee.guaranteed_error, {"source": SOURCE, "masks": MASKS, "target": TARGET,
                                  "max_norm": 1.0, "num_tokens": 4, "dtype": None}, ()),
    (guarantee.guaranteed_error_on, {"source": SOURCE, "masks": MASKS, "target": TARGET,
                                     "inputs": X, "attn_mask": None, "dtype": None}, ()),
    (supermask.num_kept, {"size": 4, "keep": 0.5}, ()),
    (supermask.from_scores, {"scores": np.ones(4, np.float32), "keep": 0.5}, ()),
    (supermask.from_tree, {"scores": {"a": np.ones(4, np.float32)}, "keep": 0.5}, ()),
    (supermask.pack, {"mask": np.ones(4, bool)}, ()),
    (supermask.unpack, {"bits": np.ones(1, np.uint8), "shape": (4,)}, ()),
    (theory.attention_widths, {"epsilon": 0.1, "d_in": 4, "d_out": 4, "num_heads": 1, "alpha": 2.0,
                               "constant": "measured"}, ()),
    (theory.block_widths, {"epsilon": 0.1, "d_in": 4, "num_heads": 1, "num_layers": 2,
                           "alpha": 2.0, "constant": 1.0}, ()),
    (theory.counting_width, {"epsilon": 0.1, "d_in": 4, "d_out": 4, "alpha": 2.0,
                             "masks": "any"}, ()),
    (theory.transformer_widths, {"epsilon": 0.1, "d_in": 4, "num_heads": 1, "num_layers": 2,
                                 "num_blocks": 2, "alpha": 2.0, "constant": 1.0}, ("num_blocks",)),
    (theory.relu_network_width, {"epsilon": 0.1, "d_in": 4, "d_out": 4, "num_layers": 2,
                                 "constant": 1.0}, ()),
    (theory.attention_error, {"n_k": 40, "n_v": 40, "d_in": 4, "d_out": 4, "num_heads": 1,
                              "alpha": 2.0, "constant": 1.0}, ()),
    (theory.softmax_error, {"logit_error": 0.1, "d_in": 4, "alpha": 2.0}, ()),
    (models.make_settings, {"vocab_size": 7, "width": 4, "num_blocks": 1, "num_heads": 2,
                            "hidden_width": 4, "max_length": 6,
                            "norm": "layer", "activation": "gelu", "positions": "learned"}, ()),
    (models.apply, {"params": PARAMS, "tokens": TOKENS, "settings": SETTINGS}, ()),
    (models.loss, {"params": PARAMS, "tokens": TOKENS, "settings": SETTINGS}, ()),
    (models.generate, {"params": PARAMS, "settings": SETTINGS, "prompt": [1], "length": 2,
                       "temperature": 0.0, "key": None, "stop": ()}, ()),
    (models.initialise, {"key": KEY, "settings": SETTINGS, "qk_scale": 1.0}, ()),
    (models.preset, {"name": "mini", "width_multiplier": 1.0}, ("width_multiplier",)),
    (ticket.create, {"source": "theory", "options": {**SHAPE, "n_k": 12, "n_v": 12}, "seed": 1,
                     "masks": MASKS, "metadata": None, "weights": None}, ()),
    (sweep.run, {"trial": _trial, "seeds": 2, "grid": {"a": [1.0]}, "chunk": 2, "static": (),
                 "padded": (), "config": None, "shard": None, "batch": None}, ("seeds",)),
    (edge_popup.fit, {"key": KEY, "params": {"w": np.ones((4, 1), np.float32)}, "loss": _loss,
                      "batches": lambda step: jnp.ones((2, 4)), "training": TRAINING, "keep": 0.5,
                      "seeds": None, "controls": (), "masking": edge_popup.Masking()}, ("seeds",)),
    (edge_popup.Schedule, {"steps": 2, "warmup": 1, "weight_decay": 0.0}, ()),
    (edge_popup.Training, {"steps": 2, "optimizer": optax.sgd(0.1), "sweep": {}, "accumulate": 1,
                           "validation": (), "evaluate_every": 1, "mesh": None}, ()),
    (edge_popup.Masking, {"variant": "ramanujan", "mask": None, "learn": None, "fan_in": {}}, ()),
    (edge_popup.Variant, {"scope": "array", "redraw_every": 0, "redraw_rate": 0.1}, ()),
    (_masked_call, {"model": _linear(), "keep": 0.5, "rngs": nnx.Rngs(0), "variant": "ramanujan",
                    "mask": None}, ()),
    (modules.Attention, {"num_heads": 2, "d_in": 4, "d_out": 4, "n_k": 2, "n_v": 2,
                         "rngs": nnx.Rngs(0)}, ("num_heads", "d_in", "d_out", "n_k", "n_v")),
    (initializers.theory_blocks, {"key": KEY, "num_blocks": 1, "num_heads": 1, "d": 2, "n_k": 4,
                                  "n_v": 4}, ("num_blocks", "num_heads", "d", "n_k", "n_v")),
    (initializers.theory_layers, {"key": KEY, "widths": (2, 3, 2), "units": (4, 4)}, ()),
    (initializers.theory_transformer, {"key": KEY, "num_blocks": 1, "num_heads": 1, "d": 2,
                                       "hidden": (3,), "units": (4, 4), "n_k": 4, "n_v": 4},
     ("num_blocks", "num_heads", "d", "n_k", "n_v")),
    (initializers.scaled_xavier_attention, {"key": KEY, "n_k": 4, "n_v": 4, **SHAPE},
     ("num_heads", "d_in", "d_out", "n_k", "n_v")),
    (initializers.signed_constant_attention, {"key": KEY, "n_k": 4, "n_v": 4, **SHAPE},
     ("num_heads", "d_in", "d_out", "n_k", "n_v")),
    (models.embeddings, {"params": {}, "tokens": TOKENS, "settings": SETTINGS}, ()),
    (models.embeddings, {"params": ENCODER_PARAMS, "tokens": TOKENS, "settings": ENCODER,
                         "kept": np.ones((1, 4), bool)}, ()),
    (hide.logits, {"model": MODEL, "tokens": TOKENS, "kept": np.ones((1, 4), bool)}, ()),
    (hide.embeddings, {"model": ENCODER_MODEL, "tokens": TOKENS,
                       "kept": np.ones((1, 4), bool)}, ()),
    (hide.measures, {"target": np.ones((1, 4, 3), np.float32), "tokens": TOKENS,
                     "ticket": np.ones((1, 4, 3), np.float32)}, ()),
    (models.weights.open, {"path": "nowhere", "config": None}, ()),
]  # fmt: skip


def _call(
    function: Callable[..., Any], accepted: Mapping[str, Any], sizes: tuple[str, ...]
) -> Callable[[random.Random], Callable[[], Any]]:
    def draw(rng: random.Random) -> Callable[[], Any]:
        given = dict(accepted)
        for name in rng.sample(sorted(given), k=min(len(given), rng.choice((1, 1, 2)))):
            pool = [value for value in NASTY if name not in sizes or value not in HUGE]
            given[name] = rng.choice(pool + ARRAYS)
        return lambda: function(**given)

    return draw


CALLS = [_call(*entry) for entry in TABLE]
