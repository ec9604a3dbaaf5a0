"""Read published transformers without normalisation, and define the tasks that they solve."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from slth_jax import checks, storage, transformer
from slth_jax.attention import causal_mask
from slth_jax.transformer import Block, Linear
from slth_jax.types import Array, AttentionParams


class Network(NamedTuple):
    """A causal transformer: an embedding, blocks without normalisation, and an unembedding."""

    w_e: Array  # [vocabulary, m]
    w_pos: Array  # [position, m]
    blocks: tuple[Block, ...]
    w_u: Array  # [m, vocabulary]


class Task(NamedTuple):
    """Questions and their answers.

    An answer is the index of the largest among the first `choices` logits at a position in
    `positions`.
    """

    name: str
    tokens: Array  # int32 [n, t]
    positions: Array  # int32 [q]
    answers: Array  # int32 [n, q]
    choices: int


def load(path: str) -> Network:
    """Read a published network from a NumPy archive.

    The arrays have the layout of TransformerLens or of Nanda et al. (2023), and the names
    `embed.W_E`, `pos_embed.W_pos`, `blocks.N.attn.W_Q` (or `attn_blocks.N...`),
    `blocks.N.mlp.W_in`, `unembed.W_U`.

    Raises:
      ValueError: the file or an array is missing, or the network has attention biases or any
        normalisation. The theory covers neither attention biases nor normalisation.
    """
    where = storage.fetched(storage.place(path))
    if not where.is_file():
        raise checks.fail("weights", "a NumPy archive (.npz) of a trained network", repr(path))
    try:
        with np.load(where) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, KeyError, EOFError) as error:
        raise checks.fail("weights", "a NumPy archive (.npz)", f"{path}: {error}") from error
    for name in arrays:
        if ".ln" in name or name.startswith("ln") or ".attn.b_" in name:
            allowed = "a network without normalisation and attention biases"
            raise checks.fail("weights", allowed, f"{path} with {name}")
    try:
        return _network(arrays)
    except KeyError as error:
        raise checks.fail("weights", f"an archive with {error}", path) from error


def _network(arrays: dict[str, np.ndarray]) -> Network:
    # W_pos is [position, m] in both layouts; from m follows which other arrays are transposed.
    w_pos = arrays["pos_embed.W_pos"]
    m = w_pos.shape[1]
    prefix = "attn_blocks" if "attn_blocks.0.attn.W_Q" in arrays else "blocks"
    blocks: list[Block] = []
    while f"{prefix}.{len(blocks)}.attn.W_Q" in arrays or not blocks:
        part = f"{prefix}.{len(blocks)}."
        w_q, w_k, w_v = (_last(arrays[f"{part}attn.W_{name}"], m) for name in "QKV")
        h, _, v = w_v.shape
        w_o = arrays[f"{part}attn.W_O"]
        w_o = w_o if w_o.ndim == 3 else w_o.T.reshape(h, v, m)
        attention = AttentionParams(*(jnp.asarray(w, jnp.float32) for w in (w_q, w_k, w_v, w_o)))
        layers = []
        if f"{part}mlp.W_in" in arrays:
            hidden = arrays[f"{part}mlp.b_in"].shape[0]
            for name, rows in (("in", hidden), ("out", m)):
                w, b = arrays[f"{part}mlp.W_{name}"], arrays[f"{part}mlp.b_{name}"]
                w = w if w.shape[0] == rows else w.T
                layers.append(Linear(jnp.asarray(w, jnp.float32), jnp.asarray(b, jnp.float32)))
        blocks.append(Block(attention, tuple(layers)))
    w_e, w_u = arrays["embed.W_E"], arrays["unembed.W_U"]
    return Network(
        w_e=jnp.asarray(w_e if w_e.shape[1] == m else w_e.T, jnp.float32),
        w_pos=jnp.asarray(w_pos, jnp.float32),
        blocks=tuple(blocks),
        w_u=jnp.asarray(w_u if w_u.shape[0] == m else w_u.T, jnp.float32),
    )


def _last(w: np.ndarray, m: int) -> np.ndarray:
    """Return a projection as `[h, m, k]`; `w` is `[h, m, k]` or `[h, k, m]`."""
    return w if w.shape[1] == m else w.transpose(0, 2, 1)


def task_of(network: Network, *, seed: int = 0, sequences: int = 64) -> Task:
    """Return the task of a network: addition modulo p, or repetition of a sequence.

    A network with three positions adds: it reads ``a, b, =`` and answers at the third position. Any
    other network reads a random sequence twice and predicts the tokens of the second copy.
    """
    vocabulary, positions = network.w_e.shape[0], network.w_pos.shape[0]
    if positions == 3:
        p = vocabulary - 1
        a, b = (part.ravel() for part in np.mgrid[:p, :p])
        tokens = np.stack([a, b, np.full_like(a, p)], axis=1)
        answers = ((a + b) % p)[:, None]
        return _task(f"addition modulo {p}", tokens, np.array([2]), answers, p)
    half = 3 * positions // 8  # the network is less accurate near the end of its context
    first = np.random.default_rng(seed).integers(0, vocabulary, (sequences, half))
    tokens = np.concatenate([first, first], axis=1)
    where = np.arange(half, 2 * half - 1)
    return _task("repetition", tokens, where, tokens[:, where + 1], vocabulary)


def embed(network: Network, tokens: Array) -> Array:
    """Return the inputs of the first block, `[n, t, m]`."""
    return network.w_e[tokens] + network.w_pos[None, : tokens.shape[1]]


def read_out(
    network: Network,
    task: Task,
    blocks: tuple[Block, ...],
    *,
    batch: int = 512,
) -> Array:
    """Compute the last block's outputs at the positions of the answers, `[n, q, m]`."""
    mask = causal_mask(task.tokens.shape[1])
    apply = partial(transformer.apply, blocks, attn_mask=mask, queries=task.positions)
    return jax.lax.map(lambda x: apply(x=x), embed(network, task.tokens), batch_size=batch)


def score(network: Network, task: Task, rows: Array) -> dict[str, Array]:
    """Return the accuracy, the mean cross-entropy, and the least margin of a right answer."""
    with jax.default_matmul_precision("highest"):
        logits = jnp.einsum("nqm,mv->nqv", rows, network.w_u)[..., : task.choices]
    right = jnp.take_along_axis(logits, task.answers[..., None], axis=-1)[..., 0]
    is_answer = jnp.arange(task.choices)[None, None] == task.answers[..., None]
    best_other = jnp.max(jnp.where(is_answer, -jnp.inf, logits), axis=-1)
    return {
        "accuracy": jnp.mean(right > best_other),
        "loss": jnp.mean(jax.nn.logsumexp(logits, axis=-1) - right),
        "margin": jnp.min(right - best_other),
    }


def certain(network: Network, task: Task, rows: Array, bound: np.ndarray) -> np.ndarray:
    """Return whether each answer stays right for all changes of `rows` within `bound`: `[n, q]`.

    In exact arithmetic, if an output row changes by at most r, the difference between the logits of
    the answer a and another token b changes by at most ``r ||u_a - u_b||``, where u are the columns
    of the unembedding.

    Args:
      network: the network.
      task: the questions.
      rows: the output rows of the network, `[n, q, m]`.
      bound: the bound on the 2-norm of the change of each row, `[n, q]`.
    """
    u = np.asarray(network.w_u, np.float64)[:, : task.choices]
    logits = np.asarray(rows, np.float64) @ u
    answers = np.asarray(task.answers)
    ahead = np.take_along_axis(logits, answers[..., None], axis=-1) - logits
    apart = np.linalg.norm(u[:, :, None] - u[:, None, :], axis=0)[answers]
    other = np.arange(task.choices) != answers[..., None]
    return np.all((ahead > apart * bound[..., None]) | ~other, axis=-1)


def _task(
    name: str, tokens: np.ndarray, positions: np.ndarray, answers: np.ndarray, choices: int
) -> Task:
    return Task(
        name,
        jnp.asarray(tokens, jnp.int32),
        jnp.asarray(positions, jnp.int32),
        jnp.asarray(answers, jnp.int32),
        choices,
    )
