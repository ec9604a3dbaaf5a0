"""GPT-2 weights under Hugging Face's names, with the record of `gpt2` (see `models.weights`)."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from slth_jax import checks, gpt2, storage
from slth_jax.gpt2 import Config, Params
from slth_jax.models.weights import folder, layout
from slth_jax.models.weights import gpt2 as theirs

_LAYOUT = theirs.layout({})


def to_state_dict(params: Mapping[str, Any], config: Config) -> dict[str, np.ndarray]:
    """Return parameters under Hugging Face's names, ``transformer.h.0.attn.c_attn.weight``.

    Masked weights are weights: a ticket's parameters go out the same way. The tied output layer
    is not repeated.

    Raises:
      ValueError: a parameter is missing or has another shape than `config` says.
    """
    return folder.to_state(params, config.settings, _LAYOUT, theirs.PREFIX)


def from_state_dict(state: Mapping[str, Any], config: Config) -> Params:
    """Return the parameters in a Hugging Face state dict of NumPy arrays.

    Names with or without the prefix ``transformer.``; causal-mask buffers and the tied output
    layer are passed over.

    Raises:
      ValueError: a weight is missing, unknown, or has another shape than `config` says.
    """
    arrays = {
        name.removeprefix(theirs.PREFIX): np.asarray(value)
        for name, value in state.items()
        if not theirs.IGNORED.match(name.removeprefix(theirs.PREFIX)) and name != "lm_head.weight"
    }
    wanted = _LAYOUT.their_shapes(config.settings)
    shapes = {name: value.shape for name, value in arrays.items()}
    layout.check("state", shapes, wanted, what="a GPT-2 of this config")
    blocks = [layout.read(_LAYOUT.rows_of(b), arrays.__getitem__) for b in range(config.num_blocks)]
    params = layout.read(_LAYOUT.ends, arrays.__getitem__)
    params |= {f"h.{name}": np.stack([block[name] for block in blocks]) for name in blocks[0]}
    return {name: jnp.asarray(value) for name, value in params.items()}


def save(path: str | os.PathLike[str], params: Mapping[str, Any], config: Config) -> None:
    """Write a folder that ``GPT2LMHeadModel.from_pretrained`` reads (see `models.weights.save`)."""
    folder.save(path, params, config.settings, initializer_range=config.init_sd)


def load(path: str | os.PathLike[str], **fields: Any) -> tuple[Params, Config]:
    """Return the parameters and the config in a folder that `save` or Hugging Face wrote.

    `fields` replace those of the config, such as ``gains='learned'``.

    Raises:
      ValueError: it is no GPT-2 of a supported kind, or its weights do not fit its config.
      CheckpointError: a file is missing or damaged.
    """
    config = from_config(storage.read_json(Path(path) / "config.json"))
    params = folder.open_folder(path).load()
    return params, dataclasses.replace(config, **fields)


def to_config(config: Config) -> dict[str, Any]:
    """Return the fields of Hugging Face's ``GPT2Config`` for `config`."""
    return theirs.fields(config.settings) | {"initializer_range": config.init_sd}


def from_config(fields: Mapping[str, Any]) -> Config:
    """Return our config for the fields of a Hugging Face ``GPT2Config``.

    Raises:
      ValueError: another model, or a setting that this GPT-2 does not have.
    """
    if fields.get("model_type") != "gpt2":
        raise checks.fail("model_type", "'gpt2'", repr(fields.get("model_type")))
    return gpt2.of(theirs.settings(fields), init_sd=fields.get("initializer_range", 0.02))
