"""Convert attention layers of PyTorch and Flax, with biases as weights of a constant input.

If a constant 1 is appended to each input, ``(x, 1)``, a bias is one more row of a projection
matrix. The query bias becomes a row of `w_q`, and the value bias becomes a row of `w_v`. The key
bias adds ``q_i . b_k`` to every logit of row i. A softmax does not change if all its logits change
by the same amount, so the key bias is left out. The output bias becomes the output of one more
hidden unit of the values, which is connected to the constant input only. The output bias is
represented exactly, because the attention weights of a row sum to one.

Dropout is ignored, and so are the dtype and the precision in which the layer computes. Every other
array or option is either converted or refused with an error that names the array or option.
"""

import sys
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from slth_jax import checks
from slth_jax.types import Array, ArrayLike, AttentionParams


def append_one(x: ArrayLike) -> Array:
    """Append a constant 1, for biases, to each input of `x [..., m]`; return `[..., m + 1]`."""
    x = checks.array("x", x, min_ndim=1)
    return jnp.concatenate([x, jnp.ones((*x.shape[:-1], 1), x.dtype)], axis=-1)


def with_biases(
    params: AttentionParams,
    *,
    query: ArrayLike | None = None,
    value: ArrayLike | None = None,
    output: ArrayLike | None = None,
) -> AttentionParams:
    """Include biases in the projections, which must then be applied to ``append_one(x)``.

    There is no argument for a bias of the keys, because it does not change the softmax. In
    cross-attention a 1 must be appended to the inputs of keys and values too:
    ``memory=append_one(memory)``.

    Args:
      params: `w_q [h, m, k]`, `w_k [g, n, k]`, `w_v [g, l, v]`, `w_o [h, v, o]`.
      query: the query biases `[h, k]`, or None.
      value: the value biases `[g, v]`, or None.
      output: the output bias `[o]`, which is added once, not once per head; or None.

    Returns:
      Projections for inputs of widths m + 1, n + 1 and l + 1; if `output` is given, every head has
      one more hidden unit of the values.

    Raises:
      ValueError: the shape of a bias does not fit the projections.
    """
    w_q, w_k, w_v, w_o = (jnp.asarray(w) for w in params)
    h, _, o = w_o.shape

    def with_row(name: str, weight: Array, bias: ArrayLike | None) -> Array:
        heads, _, width = weight.shape
        row = jnp.zeros((heads, width), weight.dtype)
        if bias is not None:
            row = checks.array(name, bias, shape=(heads, width)).astype(weight.dtype)
        return jnp.concatenate([weight, row[:, None, :]], axis=1)

    w_q = with_row("query", w_q, query)
    w_k = with_row("key", w_k, None)
    w_v = with_row("value", w_v, value)
    if output is not None:
        part = checks.array("output", output, shape=(o,)).astype(w_o.dtype) / h
        constant = jnp.zeros((*w_v.shape[:2], 1), w_v.dtype).at[:, -1].set(1)
        w_v = jnp.concatenate([w_v, constant], axis=2)
        w_o = jnp.concatenate([w_o, jnp.broadcast_to(part, (h, 1, o))], axis=1)
    return AttentionParams(w_q, w_k, w_v, w_o)


def from_torch(source: Any, num_heads: int | None = None) -> AttentionParams:
    """Return the projections of a `torch.nn.MultiheadAttention`.

    Args:
      source: the module, or its state dict; the tensors or arrays have any floating-point dtype.
      num_heads: the number of heads; required if `source` is a state dict, which does not contain
        this number.

    Returns:
      `AttentionParams` in float32. If the layer has biases (PyTorch's default), the projections
      include them as in `with_biases`, and must be applied to ``append_one(x)``. If the layer has
      `kdim` or `vdim`, pass ``memory=(key, value)`` to `apply`.

    Raises:
      ValueError: the layer adds tokens (`add_bias_kv`, `add_zero_attn`), or the names or shapes of
        the arrays are not those of a `MultiheadAttention`.
    """
    if not isinstance(source, Mapping):
        _check_module(source)
        if getattr(source, "add_zero_attn", False):
            raise checks.fail("source", "attention without add_zero_attn", "a layer with it")
        if num_heads not in (None, source.num_heads):
            raise checks.fail("num_heads", f"the module's, {source.num_heads}", num_heads)
        num_heads, source = source.num_heads, source.state_dict()
    if num_heads is None:
        raise checks.fail("num_heads", "given for a state dict", None)
    weights = {name: _numpy(name, value) for name, value in source.items() if value is not None}
    if "bias_k" in weights:
        raise checks.fail("source", "attention without add_bias_kv", "a layer with it")
    # Keys and values of other widths than queries have matrices of their own.
    separate = tuple(f"{letter}_proj_weight" for letter in "qkv")
    names = separate if separate[0] in weights else ("in_proj_weight",)
    required = {*names, "out_proj.weight"}
    if not required <= weights.keys() <= required | {"in_proj_bias", "out_proj.bias"}:
        allowed = "torch.nn.MultiheadAttention or its state dict"
        raise checks.fail("source", allowed, f"weights named {sorted(weights)}")
    stacked = [checks.array(name, weights[name], ndim=2) for name in names]
    m = stacked[0].shape[1]
    h = checks.integer("num_heads", num_heads, low=1)
    rows = m if names == separate else 3 * m
    if m % h or any(part.shape[0] != rows for part in stacked):
        raise checks.fail("num_heads", f"a divisor of the width {m}", h)
    # The rows of PyTorch's matrices belong to outputs: turn [m, n] into [h, n, k].
    parts = stacked if names == separate else jnp.split(stacked[0], 3)
    w_q, w_k, w_v = (w.reshape(h, m // h, -1).transpose(0, 2, 1) for w in parts)
    w_out = checks.array("out_proj.weight", weights["out_proj.weight"], shape=(None, m))
    params = AttentionParams(w_q, w_k, w_v, w_out.T.reshape(h, m // h, -1))
    query = value = None
    if "in_proj_bias" in weights:
        bias = checks.array("in_proj_bias", weights["in_proj_bias"], shape=(3 * m,))
        query, _, value = bias.reshape(3, h, m // h)
    output = weights.get("out_proj.bias")
    if query is None and output is None:
        return params
    return with_biases(params, query=query, value=value, output=output)


def from_flax(source: Any) -> AttentionParams:
    """Return the projections of a Flax attention layer.

    Args:
      source: an `nnx.MultiHeadAttention`, or the parameters of a linen
        `MultiHeadDotProductAttention`: ``{"query": {"kernel": [m, h, k], ...}, "key": ..., "value":
        ..., "out": {"kernel": [h, v, o], ...}}``, or this dict under the key "params".

    Returns:
      `AttentionParams` in float32, with biases included as in `with_biases`. If several query heads
      share a key-value head (`num_kv_heads`), each query head gets a copy of the key-value head. If
      keys and values have inputs of a different width than queries (`in_kv_features`), pass these
      inputs as `memory`.

    Raises:
      ValueError: arrays are missing or unknown (such as the scales of `normalize_qk`), shapes do
        not fit together, or an option such as `attention_fn`, `decode` or `qkv_dot_general` is not
        Flax's default.
    """
    tree = source.get("params", source) if isinstance(source, Mapping) else _nnx_parameters(source)
    for name, layer in tree.items():
        names = [name] if name not in _LAYERS else [f"{name}.{part}" for part in layer]
        for unknown in names:
            if unknown.partition(".")[2] not in _ARRAYS:
                allowed = "attention of kernels and biases of query, key, value and out"
                raise checks.fail("source", allowed, f"an array {unknown!r}")
    kernels, biases = {}, {}
    for name in _LAYERS:
        arrays = {
            part: _numpy(f"{name}.{part}", value) for part, value in tree.get(name, {}).items()
        }
        if "kernel" not in arrays:
            raise checks.fail("source", "an attention layer of Flax", f"no kernel of {name!r}")
        kernels[name] = checks.array(f"{name}.kernel", arrays["kernel"], ndim=3)
        biases[name] = arrays.get("bias")
    _, h, k = kernels["query"].shape
    groups = kernels["key"].shape[1]
    if groups == 0 or h % groups:
        raise checks.fail("key.kernel", f"of a number of heads that divides {h}", groups)
    checks.array("key.kernel", kernels["key"], shape=(None, groups, k))
    checks.array("value.kernel", kernels["value"], shape=(None, groups, None))
    shared = {name: jnp.repeat(kernels[name], h // groups, axis=1) for name in ("key", "value")}
    w_q, w_k, w_v = (w.transpose(1, 0, 2) for w in (kernels["query"], *shared.values()))
    w_o = checks.array("out.kernel", kernels["out"], shape=(h, w_v.shape[-1], None))
    params = AttentionParams(w_q, w_k, w_v, w_o)
    if all(bias is None for bias in biases.values()):
        return params
    value = biases["value"]
    if value is not None:
        value = np.repeat(value, h // groups, axis=0)
    return with_biases(params, query=biases["query"], value=value, output=biases["out"])


_LAYERS = ("query", "key", "value", "out")
_ARRAYS = ("kernel", "bias")


def _nnx_parameters(module: Any) -> dict[str, Any]:
    """Check the options of an `nnx.MultiHeadAttention`; return its parameters as a tree."""
    from flax import nnx  # imported here because the import takes a second

    kind = type(module)
    if not isinstance(module, nnx.MultiHeadAttention):
        raise checks.fail("source", "nnx.MultiHeadAttention or parameters", kind.__name__)
    if kind.__call__ is not nnx.MultiHeadAttention.__call__:
        raise checks.fail("source", "a layer with the __call__ of its class", kind.__name__)
    default = {
        "qkv_promote_dtype": nnx.nn.dtypes.promote_dtype,
        "out_promote_dtype": nnx.nn.dtypes.promote_dtype,
        "ln_promote_dtype": nnx.nn.dtypes.promote_dtype,
        "attention_fn": nnx.dot_product_attention,
        "decode": False,
        "qkv_dot_general": None,
        "out_dot_general": None,
        "qkv_dot_general_cls": None,
        "out_dot_general_cls": None,
    }
    for name, value in default.items():
        given = getattr(module, name, value)
        if given is not None and given is not value:
            word = getattr(given, "__name__", repr(given))
            raise checks.fail("source", f"attention with the default {name}", word)
    return nnx.to_pure_dict(nnx.state(module, nnx.Param))


def _check_module(source: Any) -> None:
    """Refuse modules other than an unmodified `torch.nn.MultiheadAttention` without hooks."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(source, torch.nn.MultiheadAttention):
        raise checks.fail("source", "a torch.nn.MultiheadAttention", type(source).__name__)
    if type(source).forward is not torch.nn.MultiheadAttention.forward:
        allowed = "a layer with the forward of its class"
        raise checks.fail("source", allowed, type(source).__name__)
    if source._forward_hooks or source._forward_pre_hooks:
        raise checks.fail("source", "a layer without forward hooks", "a layer with one")


def _numpy(name: str, value: Any) -> np.ndarray:
    """Return a PyTorch tensor or an array as a NumPy array of float32.

    Raises:
      ValueError: the dtype is complex, integer or a float of fewer than 16 bits (such a float needs
        a scale).
    """
    dtype = getattr(value, "dtype", None)
    dtype = "float32" if dtype is None else str(dtype).removeprefix("torch.")
    if dtype not in ("float16", "bfloat16", "float32", "float64"):
        raise checks.fail(name, "of 16, 32 or 64 bit floating point", f"dtype {dtype}")
    if hasattr(value, "detach"):
        value = value.detach().cpu().float().numpy()
    return np.asarray(value, np.float32)
