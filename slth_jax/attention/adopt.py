"""Attention layers of other frameworks, and biases as weights of a constant input.

With inputs ``(x, 1)`` a bias is one more row of a projection. The query bias and the value bias
are such rows; the key bias adds ``q_i . b_k`` to every logit of row i, which the softmax cancels,
so it is left out; the output bias is the output of one more value unit that reads the constant
alone, since the weights of a row of the softmax sum to one.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from slth_jax import checks
from slth_jax.types import Array, ArrayLike, AttentionParams


def append_one(x: ArrayLike) -> Array:
    """Append the constant coordinate that carries biases: ``x [..., m]`` to ``[..., m + 1]``."""
    x = checks.array("x", x, min_ndim=1)
    return jnp.concatenate([x, jnp.ones((*x.shape[:-1], 1), x.dtype)], axis=-1)


def with_biases(
    params: AttentionParams,
    *,
    query: ArrayLike | None = None,
    value: ArrayLike | None = None,
    output: ArrayLike | None = None,
) -> AttentionParams:
    """Return attention without biases that computes attention with them on ``append_one(x)``.

    A bias of the keys changes nothing (the softmax cancels it), so there is no argument for it.

    Args:
      params: `w_q, w_k [h, m, k]`, `w_v [h, m, v]`, `w_o [h, v, o]`.
      query: `[h, k]`. value: `[h, v]`. output: `[o]`, added once, not in each head.

    Returns:
      Projections of inputs of width m + 1; with `output` each head has one value unit more.

    Raises:
      ValueError: biases of other shapes.
    """
    w_q, w_k, w_v, w_o = (jnp.asarray(w) for w in params)
    h, _, k = w_q.shape
    v, o = w_o.shape[1:]

    def with_row(name: str, weight: Array, bias: ArrayLike | None, width: int) -> Array:
        row = jnp.zeros((h, width), weight.dtype)
        if bias is not None:
            row = checks.array(name, bias, shape=(h, width)).astype(weight.dtype)
        return jnp.concatenate([weight, row[:, None, :]], axis=1)

    w_q = with_row("query", w_q, query, k)
    w_k = with_row("key", w_k, None, k)
    w_v = with_row("value", w_v, value, v)
    if output is not None:
        part = checks.array("output", output, shape=(o,)).astype(w_o.dtype) / h
        constant = jnp.zeros((*w_v.shape[:2], 1), w_v.dtype).at[:, -1].set(1)
        w_v = jnp.concatenate([w_v, constant], axis=2)
        w_o = jnp.concatenate([w_o, jnp.broadcast_to(part, (h, 1, o))], axis=1)
    return AttentionParams(w_q, w_k, w_v, w_o)


def from_torch(source: Any, num_heads: int | None = None) -> AttentionParams:
    """Return the projections of a `torch.nn.MultiheadAttention`.

    Args:
      source: the module, or its state dict, of tensors or arrays.
      num_heads: of a state dict, which does not say it; of a module it is known.

    Returns:
      `AttentionParams` in float32. Of a layer with biases, as PyTorch makes it by default, they
      are those of `with_biases`: apply them to ``append_one(x)``.

    Raises:
      ValueError: keys or values of another width than queries, extra tokens (`add_bias_kv`,
        `add_zero_attn`), names or shapes that are not those of such a layer.
    """
    if not isinstance(source, Mapping):
        if getattr(source, "add_zero_attn", False):
            raise checks.fail("source", "attention without add_zero_attn", "one with it")
        num_heads = source.num_heads if num_heads is None else num_heads
        source = source.state_dict()
    if num_heads is None:
        raise checks.fail("num_heads", "given for a state dict", None)
    found = {name: _numpy(value) for name, value in source.items()}
    if "bias_k" in found:
        raise checks.fail("source", "attention without add_bias_kv", "one with it")
    if "in_proj_weight" not in found or "out_proj.weight" not in found:
        allowed = "torch.nn.MultiheadAttention with keys and values of the width of queries"
        raise checks.fail("source", allowed, f"weights named {sorted(found)}")
    stacked, w_out = found["in_proj_weight"], found["out_proj.weight"]
    m = stacked.shape[1]
    h = checks.integer("num_heads", num_heads, low=1)
    if stacked.shape[0] != 3 * m or m % h:
        raise checks.fail("num_heads", f"a divisor of the width {m}", h)
    w_q, w_k, w_v = (w.reshape(h, m // h, m).transpose(0, 2, 1) for w in np.split(stacked, 3))
    params = AttentionParams(*map(jnp.asarray, (w_q, w_k, w_v, w_out.T.reshape(h, m // h, -1))))
    if "in_proj_bias" not in found:
        return params
    query, _, value = found["in_proj_bias"].reshape(3, h, m // h)
    return with_biases(params, query=query, value=value, output=found["out_proj.bias"])


def from_flax(source: Any) -> AttentionParams:
    """Return the projections of a Flax attention layer.

    Args:
      source: an `nnx.MultiHeadAttention`, or the parameters of a linen
        `MultiHeadDotProductAttention`: ``{"query": {"kernel": [m, h, k], ...}, "key": ...,
        "value": ..., "out": {"kernel": [h, v, o], ...}}``, bare or under "params".

    Returns:
      `AttentionParams` in float32; of a layer with biases those of `with_biases`.

    Raises:
      ValueError: parts that are missing, or shapes that do not fit together.
    """
    if isinstance(source, Mapping) and "params" in source:
        source = source["params"]
    kernels, biases = {}, {}
    for name in ("query", "key", "value", "out"):
        layer = _part(source, name)
        kernel, biases[name] = _part(layer, "kernel"), _part(layer, "bias")
        if kernel is None:
            raise checks.fail("source", "an attention layer of Flax", f"no kernel of {name!r}")
        kernels[name] = checks.array(f"{name}.kernel", _numpy(kernel), ndim=3)
    w_q, w_k, w_v = (kernels[name].transpose(1, 0, 2) for name in ("query", "key", "value"))
    params = AttentionParams(w_q, w_k, w_v, kernels["out"])
    given = {
        name: None if biases[of] is None else _numpy(biases[of])
        for name, of in (("query", "query"), ("value", "value"), ("output", "out"))
    }
    if all(bias is None for bias in biases.values()):
        return params
    return with_biases(params, **given)


def _part(tree: Any, name: str) -> Any:
    """Return an entry of a mapping or an attribute of a module; None where there is nothing."""
    found: Any = tree.get(name) if isinstance(tree, Mapping) else getattr(tree, name, None)
    return found.get_value() if hasattr(found, "get_value") else found


def _numpy(value: Any) -> np.ndarray:
    """Return a tensor of PyTorch, a variable of Flax or an array in NumPy float32."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    return np.asarray(value, np.float32)
