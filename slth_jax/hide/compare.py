"""Compare a target and its ticket on the same inputs: logits, embeddings and tokens."""

import os
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from slth_jax import checks, storage
from slth_jax.hide.model import Model
from slth_jax.models import Settings, decoder, encoder
from slth_jax.types import Array, ArrayLike

# The largest number of attention logits, or of output logits, that are computed at once.
_ENTRIES = 1 << 26
_MODEL = "a model of `hide.of_target` or `hide.of_ticket`"
_LENGTHS = 32  # texts are padded to multiples of this length


def read_tokens(
    path: str | os.PathLike[str], settings: Settings
) -> Int[np.ndarray, "batch length"]:
    """Return the tokens in a NumPy file.

    Raises:
      ValueError: the file does not contain integers `[batch, length]`, or the model's vocabulary or
        context is too small for them.
      CheckpointError: the file is missing or damaged.
    """
    tokens = storage.read_numpy(path)
    if not isinstance(tokens, np.ndarray) or tokens.ndim != 2 or tokens.size == 0:
        raise checks.fail(f"{path}", "integers [batch, length]", "other content")
    decoder.check_tokens(tokens, settings)
    return tokens.astype(np.int32)


def logits(
    model: Model,
    tokens: Int[ArrayLike, "batch length"],
    *,
    kept: Bool[ArrayLike, "batch length"] | None = None,
) -> Float[np.ndarray, "batch length outputs"]:
    """Return a model's logits, or an encoder's states, in float32, computed block by block.

    Args:
      model: the model.
      tokens: integers.
      kept: False at padding tokens, to which no token attends; None if there is no padding.
    """
    tokens, kept = _checked(model, tokens, kept)
    return _outputs(model, [(tokens, kept)])[0]


def embeddings(
    model: Model,
    tokens: Int[ArrayLike, "batch length"],
    *,
    kept: Bool[ArrayLike, "batch length"] | None = None,
    pooling: str = "mean",
    normalise: bool = True,
) -> Float[np.ndarray, "batch width"]:
    """Return the same embeddings of texts as `models.embeddings`, computed block by block.

    Texts of similar length are computed together, so little time is spent on padding.

    Raises:
      ValueError: the model is a decoder, or the arguments do not fit.
    """
    checks.instance("model", model, Model, _MODEL)
    encoder.check(model.settings, pooling)
    tokens, kept = _checked(model, tokens, kept)
    kept = np.ones(tokens.shape, bool) if kept is None else kept
    last = tokens.shape[1] - np.argmax(kept[:, ::-1], axis=1)  # 1 + the index of the last token
    lengths = np.minimum(-(-last // _LENGTHS) * _LENGTHS, tokens.shape[1])
    groups = [np.flatnonzero(lengths == length) for length in np.unique(lengths)]
    texts = [(tokens[g, : lengths[g[0]]], kept[g, : lengths[g[0]]]) for g in groups]
    result = np.empty((len(tokens), model.settings.width), np.float32)
    for group, (_, mask), states in zip(groups, texts, _outputs(model, texts), strict=True):
        arrays = jnp.asarray(states), jnp.asarray(mask)
        result[group] = np.asarray(encoder.pool(*arrays, pooling=pooling, normalise=normalise))
    return result


def _checked(
    model: Model, tokens: ArrayLike, kept: ArrayLike | None
) -> tuple[Int[np.ndarray, "batch length"], Bool[np.ndarray, "batch length"] | None]:
    checks.instance("model", model, Model, _MODEL)
    checked = np.asarray(decoder.check_tokens(np.asarray(tokens), model.settings))
    if not checked.size:
        raise checks.fail("tokens", "at least one token", f"shape {checked.shape}")
    if kept is not None:
        kept = np.asarray(checks.array("kept", kept, shape=checked.shape, kind="bool"))
    return checked, kept


def _outputs(
    model: Model, batches: Sequence[tuple[np.ndarray, ArrayLike | None]]
) -> list[np.ndarray]:
    """Return the logits or states for batches of (tokens, padding mask or None)."""
    settings = model.settings
    groups: list[tuple[int, Array, Array | None]] = []  # batch, tokens, mask
    for number, (tokens, kept) in enumerate(batches):
        n, length = tokens.shape
        size = max(settings.num_heads * length**2, length * settings.width * 8)
        at_once = max(1, _ENTRIES // size)
        for place in (slice(i, i + at_once) for i in range(0, n, at_once)):
            group = jnp.asarray(tokens[place])
            padding = None if kept is None else encoder.padding(jnp.asarray(kept)[place])
            groups.append((number, group, decoder.padding_mask(group, settings, padding)))
    ends = {name: jnp.asarray(value) for name, value in model.ends().items()}
    rows = [decoder.embed(ends, group, settings) for _, group, _ in groups]
    for b in range(settings.num_blocks):
        block = {name: jnp.asarray(value) for name, value in model.block(b).items()}
        rows = [
            decoder.block(block, x, settings, attn_mask=mask)
            for x, (_, _, mask) in zip(rows, groups, strict=True)
        ]
    results: list[list[np.ndarray]] = [[] for _ in batches]
    for x, (number, _, _) in zip(rows, groups, strict=True):
        step = max(1, _ENTRIES // settings.outputs // x.shape[1])
        for i in range(0, len(x), step):
            results[number].append(np.asarray(decoder.unembed(ends, x[i : i + step], settings)))
    return [np.concatenate(parts) for parts in results]


def measures(
    target: Float[np.ndarray, "n t outputs"],
    ticket: Float[np.ndarray, "n t outputs"],
    tokens: Int[ArrayLike, "n t"] | None,
) -> dict[str, Any]:
    """Return distances between the logits of ticket and target, and their top-1 agreement.

    The top-1 agreement is the fraction of positions at which both models have the same likeliest
    token. If the tokens of a causal language model are given, the perplexities of both models are
    returned too.
    """
    target = np.asarray(checks.array("target", target, ndim=3))
    ticket = np.asarray(checks.array("ticket", ticket, shape=target.shape))
    if not target.size:
        raise checks.fail("target", "at least one logit", f"shape {target.shape}")
    if tokens is not None:
        limit = target.shape[-1]
        tokens = np.asarray(checks.array("tokens", tokens, shape=target.shape[:2], kind="int"))
        if tokens.min() < 0 or tokens.max() >= limit:
            raise checks.fail("tokens", f"in [0, {limit - 1}]", f"{tokens.min()} to {tokens.max()}")
    largest, squared, absolute, agree = 0.0, 0.0, 0.0, 0
    for a, b in zip(target, ticket, strict=True):  # sequence by sequence, since logits may be large
        difference = b.astype(np.float64) - a
        largest = max(largest, float(np.abs(difference).max()))
        squared += float(np.square(difference).sum())
        absolute += float(np.abs(difference).sum())
        agree += int((a.argmax(-1) == b.argmax(-1)).sum())
    result = {
        "max_logit_difference": largest,
        "rms_logit_difference": float(np.sqrt(squared / target.size)),
        "mean_logit_difference": absolute / target.size,
        "logit_sd": float(np.std(target, dtype=np.float64)),
        "top1_agreement": agree / (target.shape[0] * target.shape[1]),
    }
    if tokens is not None and tokens.shape[1] > 1:
        result["target_perplexity"] = perplexity(target, tokens)
        result["ticket_perplexity"] = perplexity(ticket, tokens)
    return result


def perplexity(logits: Float[np.ndarray, "n t outputs"], tokens: Int[np.ndarray, "n t"]) -> float:
    """Return ``exp`` of the mean cross-entropy (in nats) of each token given all earlier tokens."""
    losses = []
    for scores, row in zip(logits, tokens, strict=True):
        wide = scores[:-1].astype(np.float64)
        most = wide.max(-1, keepdims=True)
        total = most[:, 0] + np.log(np.exp(wide - most).sum(-1))
        losses.append(total - np.take_along_axis(wide, row[1:, None], -1)[:, 0])
    return float(np.exp(np.mean(losses)))


def equal_tokens(target: Sequence[int], ticket: Sequence[int]) -> int:
    """Return the number of tokens before the first difference between two texts."""
    pairs = zip(target, ticket, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(target), len(ticket)))
