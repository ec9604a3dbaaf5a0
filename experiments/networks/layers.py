"""Cases: attention layers of `torch.nn`, `flax.linen` and `flax.nnx` with all options."""

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from experiments.networks.judge import Case, Outputs
from slth_jax import attention

T, M = 5, 12  # tokens, width
X = np.random.default_rng(0).normal(size=(T, M)).astype(np.float32)
KEY = jax.random.key(2, impl="threefry2x32")

TORCH: dict[str, tuple[Any, ...]] = {
    "num_heads": (1, 3, 4), "dropout": (0.0, 0.3), "bias": (True, False),
    "add_bias_kv": (False, False, False, True), "add_zero_attn": (False, False, False, True),
    "kdim": (None, M, M, 7), "vdim": (None, M, M, 5), "batch_first": (True, False),
    "dtype": ("float32", "float64", "bfloat16", "float16"),
    "dropped": (None, None, None, "in_proj_bias", "out_proj.bias"), "state": (False, True),
}  # fmt: skip
_FLAX: dict[str, tuple[Any, ...]] = {
    "num_heads": (1, 6), "qkv_features": (None, 6, 24), "out_features": (None, 4),
    "use_bias": (True, False), "normalize_qk": (False, False, False, True),
    "dropout_rate": (0.0, 0.2), "broadcast_dropout": (True, False),
    "dtype": (None, "float32", "bfloat16", "float16"),
    "param_dtype": ("float32", "bfloat16", "float16"),
    "attention_fn": (None, None, None, "values"), "precision": (None, "highest"),
}  # fmt: skip
NNX = {**_FLAX, "num_kv_heads": (None, None, 2, 1), "in_kv_features": (None, None, M, 5)}
LINEN = {**_FLAX, "force_fp32_for_softmax": (False, True)}


def _values(*arguments: Any, **options: Any) -> Any:
    return arguments[2]


def _halved(arrays: Any, **options: Any) -> Any:
    return tuple(None if array is None else array / 2 for array in arrays)


def _rows(width: int) -> np.ndarray:
    """Return a random input for keys or values, `[T, width]`."""
    return np.random.default_rng(width).normal(size=(T, width)).astype(np.float32)


def _ours(read: Callable[[], attention.AttentionParams], *others: np.ndarray) -> np.ndarray:
    """Apply this library's layer to X; `others` are the inputs of keys and values, if not X."""
    params = read()
    extra = params.w_q.shape[1] - M  # the constant coordinate that carries biases
    extend: Callable = attention.append_one if extra else np.asarray
    memory = tuple(map(extend, others)) or None
    return np.asarray(attention.apply(params, extend(X), memory=memory))


def torch_case(words: str, **options: Any) -> Case:
    """Return the case of a `torch.nn.MultiheadAttention` layer or of a state dict of the layer."""

    def make(folder: Path) -> tuple[Outputs, Outputs]:
        given: dict[str, Any] = {
            "num_heads": 3,
            "dtype": "float32",
            "dropped": None,
            "state": False,
        }
        given |= options
        heads, dropped, state = (given.pop(name) for name in ("num_heads", "dropped", "state"))
        dtype = getattr(torch, given.pop("dtype"))
        torch.manual_seed(0)
        layer = torch.nn.MultiheadAttention(M, heads, **given).eval()
        with torch.no_grad():
            for weight in layer.parameters():  # PyTorch initialises biases to zero
                weight.uniform_(-0.5, 0.5)
        layer = layer.to(dtype)
        source: Any = layer
        # A state dict contains neither add_zero_attn nor the number of heads.
        if (state or dropped) and not given.get("add_zero_attn"):
            source = {name: v for name, v in layer.state_dict().items() if name != dropped}
        elif dropped:
            dropped = None

        others = _rows(given.get("kdim") or M), _rows(given.get("vdim") or M)

        def makers() -> np.ndarray:
            whole = torch.nn.MultiheadAttention(M, heads, **given).eval()
            with torch.no_grad():
                for name, value in whole.named_parameters():
                    value.copy_(layer.state_dict()[name].float())
                    if name == dropped:
                        value.zero_()
                first = 0 if given.get("batch_first") else 1
                tensors = (torch.from_numpy(rows).unsqueeze(first) for rows in (X, *others))
                return whole(*tensors, need_weights=False)[0].reshape(T, -1).numpy()

        named = heads if isinstance(source, Mapping) else None
        return (lambda: _ours(lambda: attention.from_torch(source, named), *others)), makers

    return Case(words, make, tolerance=2e-5)


def flax_case(words: str, kind: str, **options: Any) -> Case:
    """Return the case of an `nnx.MultiHeadAttention`, or of the parameters of a linen layer."""

    def make(folder: Path) -> tuple[Outputs, Outputs]:
        given = {"num_heads": 6} | options
        heads = given.pop("num_heads")
        if given.pop("attention_fn", None):
            given["attention_fn"] = _values
        for name in ("dtype", "param_dtype"):
            if given.get(name):
                given[name] = jnp.dtype(given[name])
        dtype = given.pop("dtype", None)
        if kind == "linen":
            return _linen(heads, dtype, given)
        module = nnx.MultiHeadAttention(
            heads, M, **given, dtype=dtype, decode=False, deterministic=True, rngs=nnx.Rngs(0)
        )
        grown = jax.tree.map(lambda w: w + 0.25, nnx.state(module, nnx.Param))
        nnx.update(module, grown)  # biases start at zero
        rows = _rows(given.get("in_kv_features") or M)

        def makers() -> np.ndarray:
            # The reference runs in float32, because dtype only sets the precision of the
            # computation.
            whole = nnx.MultiHeadAttention(
                heads, M, **given | {"param_dtype": jnp.float32}, decode=False, deterministic=True,
                rngs=nnx.Rngs(0),
            )  # fmt: skip
            nnx.update(whole, jax.tree.map(lambda w: w.astype(jnp.float32), grown))
            return np.asarray(whole(jnp.asarray(X)[None], jnp.asarray(rows)[None]))[0]

        return (lambda: _ours(lambda: attention.from_flax(module), rows, rows)), makers

    return Case(words, make, tolerance=1e-4)


def _linen(heads: int, dtype: Any, given: dict[str, Any]) -> tuple[Outputs, Outputs]:
    """Return two functions that compute the outputs of a linen layer, as in `Case.make`.

    This library reads only the parameters. The parameters do not depend on the option
    `attention_fn`, so this option is left out.
    """
    given.pop("attention_fn", None)
    layer = flax.linen.MultiHeadDotProductAttention(heads, **given, dtype=dtype, deterministic=True)
    variables = jax.tree.map(lambda w: w + 0.25, layer.init(KEY, X[None]))

    def makers() -> np.ndarray:
        whole = layer.clone(dtype=jnp.float32)
        wide = jax.tree.map(lambda w: w.astype(jnp.float32), variables)
        return np.asarray(whole.apply(wide, X[None]))[0]

    return (lambda: _ours(lambda: attention.from_flax(variables))), makers


def draw(kind: str, seed: str) -> Case:
    """Draw a case: a 'torch', 'linen' or 'nnx' layer with a random value for every option."""
    rng = random.Random(f"{seed} {kind}")
    table = {"torch": TORCH, "linen": LINEN, "nnx": NNX}[kind]
    options = {name: rng.choice(values) for name, values in table.items()}
    if kind == "torch" and not options["bias"]:
        options["dropped"] = None
    if options.get("num_kv_heads") and options["num_heads"] % options["num_kv_heads"]:
        options["num_kv_heads"] = None
    words = ", ".join(f"{k}={v!r}" for k, v in options.items() if v not in (None, False))
    if kind == "torch":
        return torch_case(words, **options)
    return flax_case(words, kind, **options)


def _float16(folder: Path) -> tuple[Outputs, Outputs]:
    """Return two functions that compute the outputs of a layer whose logits overflow float16.

    All entries of queries and keys are 38.4, so their dot product over 64 units is 94,000.
    """
    layer = torch.nn.MultiheadAttention(64, 1, bias=False, batch_first=True)
    with torch.no_grad():
        layer.in_proj_weight.fill_(0.5)
    x = np.full((3, 64), 1.2, np.float16)

    def ours() -> Any:
        params = jax.tree.map(lambda w: w.astype(jnp.float16), attention.from_torch(layer))
        return np.asarray(attention.apply(params, jnp.asarray(x)), np.float32)

    def makers() -> np.ndarray:
        wide = torch.from_numpy(x.astype(np.float32))[None]
        with torch.no_grad():
            return layer(wide, wide, wide, need_weights=False)[0][0].numpy()

    return ours, makers


class _Doubled(torch.nn.MultiheadAttention):
    """A layer that has the arrays of its base class but returns twice its output."""

    def forward(self, *arguments: Any, **options: Any) -> Any:
        output, weights = super().forward(*arguments, **options)
        return 2 * output, weights


def _of_module(change: Callable[[torch.nn.Module], Any]) -> Callable[[Path], tuple]:
    """Return a function that builds a PyTorch layer, modified or replaced by `change`."""

    def make(folder: Path) -> tuple[Outputs, Outputs]:
        layer = torch.nn.MultiheadAttention(M, 3, bias=False).eval()
        changed = change(layer) or layer
        x = torch.from_numpy(X)[:, None]

        def makers() -> np.ndarray:
            with torch.no_grad():
                return changed(x, x, x, need_weights=False)[0][:, 0].numpy()

        return (lambda: _ours(lambda: attention.from_torch(changed))), makers

    return make


def _hooked(layer: torch.nn.Module) -> None:
    layer.register_forward_hook(lambda module, inputs, outputs: (2 * outputs[0], outputs[1]))


def _state(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], tuple]:
    """Return a function that builds a state dict whose tensors `change` has converted."""

    def make(folder: Path) -> tuple[Outputs, Outputs]:
        layer = torch.nn.MultiheadAttention(M, 3, bias=False)
        state = {name: change(value.detach()) for name, value in layer.state_dict().items()}

        def makers() -> np.ndarray:
            raise TypeError("the layer does not take such weights")

        return (lambda: _ours(lambda: attention.from_torch(state, 3))), makers

    return make


CASES = (
    Case("torch: a class with another forward", _of_module(lambda layer: _Doubled(M, 3).eval())),
    Case("torch: a forward hook", _of_module(_hooked)),
    Case("torch: integers of quantised weights", _state(lambda w: (100 * w).to(torch.int8))),
    Case("torch: complex weights", _state(lambda w: w.to(torch.complex64))),
    Case("torch: float8 weights", _state(lambda w: w.to(torch.float8_e4m3fn))),
    torch_case("torch: biases"),
    torch_case("torch: no biases", bias=False),
    torch_case("torch: an output bias and no input bias", dropped="in_proj_bias"),
    torch_case("torch: input biases and no output bias", dropped="out_proj.bias"),
    torch_case("torch: bfloat16", dtype="bfloat16"),
    torch_case("torch: add_bias_kv", add_bias_kv=True),
    torch_case("torch: add_zero_attn", add_zero_attn=True),
    torch_case("torch: keys of another width", kdim=7),
    *(flax_case(f"{kind}: biases", kind) for kind in ("linen", "nnx")),
    *(flax_case(f"{kind}: normalize_qk", kind, normalize_qk=True) for kind in ("linen", "nnx")),
    *(flax_case(f"{kind}: bfloat16", kind, param_dtype="bfloat16") for kind in ("linen", "nnx")),
    flax_case("nnx: num_kv_heads 2", "nnx", num_kv_heads=2),
    flax_case("nnx: in_kv_features of another width", "nnx", in_kv_features=5),
    flax_case("nnx: another qkv_promote_dtype", "nnx", qkv_promote_dtype=_halved),
    flax_case("nnx: another attention_fn", "nnx", attention_fn="values"),
    Case("torch: float16 logits beyond its range before the division", _float16, 5e-3),
)
