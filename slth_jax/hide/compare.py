"""A target and its ticket on the same inputs: logits, agreement, and the texts that they write."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from slth_jax import checks, storage
from slth_jax.hide import file
from slth_jax.hide.file import Opened
from slth_jax.models import Settings, decoder
from slth_jax.models.weights import Reader
from slth_jax.sources import assemble, products
from slth_jax.types import Array, ArrayLike

Arrays = Mapping[str, np.ndarray]
# Attention logits, or logits, that are computed at once.
_ENTRIES = 1 << 26


class Model(NamedTuple):
    """A model that is read block by block: memory does not grow with its depth."""

    settings: Settings
    ends: Callable[[], Arrays]
    block: Callable[[int], Arrays]

    def load(self) -> dict[str, Array]:
        """Return all parameters, blocks stacked."""
        params = {name: jnp.asarray(value) for name, value in self.ends().items()}
        blocks = [dict(self.block(b)) for b in range(self.settings.num_blocks)]
        for name in tuple(blocks[0]):
            params[f"h.{name}"] = jnp.asarray(np.stack([block.pop(name) for block in blocks]))
        return params


def of_target(reader: Reader) -> Model:
    """Return the model in a file of weights."""
    return Model(reader.settings, reader.ends, reader.block)


def of_ticket(ticket: Opened | str | os.PathLike[str]) -> Model:
    """Return the model in a ticket, merged; a block is generated from the seed when asked for."""
    opened = ticket if isinstance(ticket, Opened) else file.opened(ticket)
    mesh = products.mesh()

    def entries(name: str) -> np.ndarray:
        return opened.entries(name, mesh)

    recipe = opened.recipe
    return Model(
        assemble.merged_settings(recipe),
        lambda: assemble.merged_ends(recipe, entries),
        lambda b: assemble.merged_block(recipe, b, entries),
    )


def read_tokens(path: str | os.PathLike[str], settings: Settings) -> np.ndarray:
    """Return the tokens `[batch, length]` in a NumPy file.

    Raises:
      ValueError: they are no such integers, or not of the model's vocabulary and context.
      CheckpointError: the file is missing or damaged.
    """
    path = Path(path)
    try:
        tokens = np.load(path, allow_pickle=False)
    except OSError as error:
        raise storage.CheckpointError(f"cannot read {path}: {storage.reason(error)}") from error
    except (ValueError, EOFError) as error:
        raise storage.Damaged(f"{path} is no NumPy file of integers") from error
    if not isinstance(tokens, np.ndarray) or tokens.ndim != 2 or tokens.size == 0:
        raise checks.fail(f"{path}", "integers [batch, length]", f"shape {np.shape(tokens)}")
    decoder.check_tokens(tokens, settings)
    return tokens.astype(np.int32)


def logits(model: Model, tokens: ArrayLike) -> np.ndarray:
    """Return the logits `[batch, length, outputs]`, float32, block after block."""
    settings = model.settings
    tokens = np.asarray(decoder.check_tokens(np.asarray(tokens), settings))
    n, length = tokens.shape
    at_once = max(1, _ENTRIES // max(settings.num_heads * length**2, length * settings.width * 8))
    groups = [jnp.asarray(tokens[i : i + at_once]) for i in range(0, n, at_once)]
    masks = [decoder.padding_mask(group, settings) for group in groups]
    ends = {name: jnp.asarray(value) for name, value in model.ends().items()}
    rows = [decoder.embed(ends, group, settings) for group in groups]
    for b in range(settings.num_blocks):
        block = {name: jnp.asarray(value) for name, value in model.block(b).items()}
        rows = [
            decoder.block(block, x, settings, attn_mask=mask)
            for x, mask in zip(rows, masks, strict=True)
        ]
    step = max(1, _ENTRIES // settings.outputs // length)
    found = []
    for x in rows:
        for i in range(0, len(x), step):
            found.append(np.asarray(decoder.unembed(ends, x[i : i + step], settings)))
    return np.concatenate(found)


def measures(target: np.ndarray, ticket: np.ndarray, tokens: ArrayLike | None) -> dict[str, Any]:
    """Return how far a ticket's logits `[n, t, outputs]` are from the target's.

    With `tokens [n, t]` of a causal language model also both perplexities, of each token given
    those before.
    """
    largest, squared, absolute, agree = 0.0, 0.0, 0.0, 0
    for a, b in zip(target, ticket, strict=True):  # sequence by sequence: these may be large
        difference = b.astype(np.float64) - a
        largest = max(largest, float(np.abs(difference).max()))
        squared += float(np.square(difference).sum())
        absolute += float(np.abs(difference).sum())
        agree += int((a.argmax(-1) == b.argmax(-1)).sum())
    found = {
        "max_logit_difference": largest,
        "rms_logit_difference": float(np.sqrt(squared / target.size)),
        "mean_logit_difference": absolute / target.size,
        "logit_sd": float(np.std(target, dtype=np.float64)),
        "top1_agreement": agree / (target.shape[0] * target.shape[1]),
    }
    tokens = None if tokens is None else np.asarray(tokens)
    if tokens is not None and tokens.shape[1] > 1:
        found["target_perplexity"] = perplexity(target, tokens)
        found["ticket_perplexity"] = perplexity(ticket, tokens)
    return found


def perplexity(logits: np.ndarray, tokens: np.ndarray) -> float:
    """Return ``exp`` of the mean cross-entropy of `tokens [n, t]` given those before."""
    losses = []
    for one, row in zip(logits, tokens, strict=True):
        wide = one[:-1].astype(np.float64)
        most = wide.max(-1, keepdims=True)
        total = most[:, 0] + np.log(np.exp(wide - most).sum(-1))
        losses.append(total - np.take_along_axis(wide, row[1:, None], -1)[:, 0])
    return float(np.exp(np.mean(losses)))


def equal_tokens(target: Sequence[int], ticket: Sequence[int]) -> int:
    """Return how many tokens at the beginning of two texts are the same."""
    pairs = zip(target, ticket, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(target), len(ticket)))
