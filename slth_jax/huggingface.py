"""GPT-2 weights under Hugging Face's names: `GPT2LMHeadModel` state dicts and safetensors files.

Both apply matrices as ``x @ w``, so only the names, the stacking of blocks and the joining of
query, key and value differ.
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from slth_jax import checks, storage
from slth_jax.gpt2_config import Config, matrix_shapes, vector_shapes
from slth_jax.gpt2_core import Params
from slth_jax.storage import Damaged

# Ours to theirs, within a block.
_BLOCK = {
    "h.ln_1.gain": "ln_1.weight",
    "h.ln_1.bias": "ln_1.bias",
    "h.ln_2.gain": "ln_2.weight",
    "h.ln_2.bias": "ln_2.bias",
    "h.attn.o": "attn.c_proj.weight",
    "h.attn.o.bias": "attn.c_proj.bias",
    "h.mlp.in": "mlp.c_fc.weight",
    "h.mlp.in.bias": "mlp.c_fc.bias",
    "h.mlp.out": "mlp.c_proj.weight",
    "h.mlp.out.bias": "mlp.c_proj.bias",
}
_WHOLE = {
    "wte": "wte.weight",
    "wpe": "wpe.weight",
    "ln_f.gain": "ln_f.weight",
    "ln_f.bias": "ln_f.bias",
}
_ACTIVATIONS = {"relu": "relu", "gelu": "gelu_new"}
_IGNORED = (".attn.bias", ".attn.masked_bias", "lm_head.weight")  # causal masks; tied to wte


def to_state_dict(params: Mapping[str, Any], config: Config) -> dict[str, np.ndarray]:
    """Return parameters under Hugging Face's names, ``transformer.h.0.attn.c_attn.weight``.

    Masked weights are weights: a ticket's parameters go out the same way. The tied output layer
    is not repeated.

    Raises:
      ValueError: a parameter is missing or has another shape than `config` says.
    """
    shapes = {**matrix_shapes(config), **vector_shapes(config)}
    for name, shape in shapes.items():
        if name not in params:
            raise checks.fail("params", f"complete for the config, with {name!r}", sorted(params))
        checks.array(f"params[{name!r}]", params[name], shape=shape, finite=False)
    arrays = {name: np.asarray(params[name]) for name in shapes}
    state = {f"transformer.{theirs}": arrays[ours] for ours, theirs in _WHOLE.items()}
    for b in range(config.num_blocks):
        prefix = f"transformer.h.{b}."
        for ours, theirs in _BLOCK.items():
            state[prefix + theirs] = arrays[ours][b]
        for ending, theirs in (("", "weight"), (".bias", "bias")):
            joined = [arrays[f"h.attn.{name}{ending}"][b] for name in "qkv"]
            state[f"{prefix}attn.c_attn.{theirs}"] = np.concatenate(joined, axis=-1)
    return {name: np.ascontiguousarray(value) for name, value in state.items()}


def from_state_dict(state: Mapping[str, Any], config: Config) -> Params:
    """Return the parameters in a Hugging Face state dict of NumPy arrays.

    Names with or without the prefix ``transformer.``; causal-mask buffers and the tied output
    layer are passed over.

    Raises:
      ValueError: a weight is missing, unknown, or has another shape than `config` says.
    """
    state = {
        name.removeprefix("transformer."): np.asarray(value)
        for name, value in state.items()
        if not name.endswith(_IGNORED)
    }
    blocks = range(config.num_blocks)
    expected = set(_WHOLE.values()) | {
        f"h.{b}.{theirs}"
        for b in blocks
        for theirs in (*_BLOCK.values(), "attn.c_attn.weight", "attn.c_attn.bias")
    }
    for name in sorted(expected ^ state.keys()):
        problem = "lacks" if name in expected else "also has"
        raise checks.fail("state", "a GPT-2 of this config", f"one that {problem} {name!r}")
    params = {ours: state[theirs] for ours, theirs in _WHOLE.items()}
    for ours, theirs in _BLOCK.items():
        params[ours] = _stacked([state[f"h.{b}.{theirs}"] for b in blocks], ours)
    for ending, theirs in (("", "weight"), (".bias", "bias")):
        joined = _stacked([state[f"h.{b}.attn.c_attn.{theirs}"] for b in blocks], theirs)
        for name, part in zip("qkv", np.split(joined, 3, axis=-1), strict=True):
            params[f"h.attn.{name}{ending}"] = part
    shapes = {**matrix_shapes(config), **vector_shapes(config)}
    return {
        name: checks.array(f"state[{name!r}]", jnp.asarray(params[name]), shape=shape, finite=False)
        for name, shape in shapes.items()
    }


def save(path: str | os.PathLike[str], params: Mapping[str, Any], config: Config) -> None:
    """Write a folder that ``GPT2LMHeadModel.from_pretrained`` reads.

    It holds ``config.json`` and ``model.safetensors``, each written atomically.

    Raises:
      ValueError: see `to_state_dict`.
      CheckpointError: the folder cannot be written to.
    """
    state = to_state_dict(params, config)
    folder = storage.make_folder(path)
    data = safetensors.numpy.save(state, metadata={"format": "pt"})
    storage.write_bytes(folder / "model.safetensors", data)
    storage.write_json(folder / "config.json", to_config(config))


def load(path: str | os.PathLike[str], **settings: Any) -> tuple[Params, Config]:
    """Return the parameters and the config in a folder that `save` or Hugging Face wrote.

    `settings` replace fields of the config, such as ``gains='learned'``.

    Raises:
      ValueError: it is no GPT-2 of a supported kind, or its weights do not fit its config.
      CheckpointError: a file is missing or damaged.
    """
    folder = Path(path)
    config = from_config(storage.read_json(folder / "config.json"))
    data = storage.read_bytes(folder / "model.safetensors")
    try:
        state = safetensors.numpy.load(data)
    except safetensors.SafetensorError as error:
        raise Damaged(f"{folder / 'model.safetensors'} is damaged: {error}") from error
    return from_state_dict(state, config), dataclasses.replace(config, **settings)


def to_config(config: Config) -> dict[str, Any]:
    """Return the fields of Hugging Face's ``GPT2Config`` for `config`."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_positions": config.max_length,
        "n_embd": config.width,
        "n_layer": config.num_blocks,
        "n_head": config.num_heads,
        "activation_function": _ACTIVATIONS[config.activation],
        "layer_norm_epsilon": 1e-5,
        "initializer_range": config.init_sd,
        "tie_word_embeddings": True,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "bos_token_id": config.vocab_size - 1,
        "eos_token_id": config.vocab_size - 1,
    }


def from_config(fields: Mapping[str, Any]) -> Config:
    """Return our config for the fields of a Hugging Face ``GPT2Config``.

    Raises:
      ValueError: another model, or a setting that this GPT-2 does not have.
    """
    if fields.get("model_type") != "gpt2":
        raise checks.fail("model_type", "'gpt2'", repr(fields.get("model_type")))
    activation = fields.get("activation_function", "gelu_new")
    ours = {theirs: name for name, theirs in _ACTIVATIONS.items()}
    checks.choice("activation_function", activation, ours)
    fixed = {
        "layer_norm_epsilon": 1e-5,
        "n_inner": None,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
        "tie_word_embeddings": True,
    }
    for name, value in fixed.items():
        came = fields.get(name, value)
        if came != value and not (name == "n_inner" and came == 4 * fields["n_embd"]):
            raise checks.fail(name, repr(value), repr(came))
    return Config(
        num_blocks=fields["n_layer"],
        width=fields["n_embd"],
        num_heads=fields["n_head"],
        vocab_size=fields["vocab_size"],
        max_length=fields["n_positions"],
        activation=ours[activation],
        init_sd=fields.get("initializer_range", 0.02),
    )


def _stacked(parts: list[np.ndarray], name: str) -> np.ndarray:
    shapes = {part.shape for part in parts}
    if len(shapes) > 1:
        raise checks.fail(f"state[{name!r}]", "of one shape in all blocks", sorted(shapes))
    return np.stack(parts)
