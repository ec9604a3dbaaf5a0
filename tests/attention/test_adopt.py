"""Layers of PyTorch and Flax, biases included, against those frameworks' own results."""

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from refusals import refusals

from slth_jax import attention, construction, initializers

T, M, H = 5, 12, 3
S = 4  # tokens of the memory
KEY = jax.random.key(2, impl="threefry2x32")
X = np.array(jax.random.normal(KEY, (T, M)))


def memory(width, index=1):
    """Return the input of keys or values."""
    return np.array(jax.random.normal(jax.random.fold_in(KEY, index), (S, width)))


def ours(params, biases, *others):
    """Apply projections to X, and to other inputs of keys and values."""
    ones = attention.append_one if biases else np.asarray
    return attention.apply(params, ones(X), memory=tuple(map(ones, others)) or None)


def torch_layer(**options):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    torch.manual_seed(0)
    layer = torch.nn.MultiheadAttention(M, H, batch_first=True, **options)
    with torch.no_grad():
        for weight in layer.parameters():  # its own biases start at zero
            weight.uniform_(-0.5, 0.5)
        x = torch.from_numpy(X)[None]
        if layer.kdim != M:
            return layer, None
        return layer, layer(x, x, x, need_weights=False)[0][0].numpy()


@pytest.mark.parametrize("bias", [True, False])
def test_pytorch_module_and_state_dict(bias):
    layer, want = torch_layer(bias=bias)
    for source, heads in ((layer, None), (layer.state_dict(), H)):
        params = attention.from_torch(source, heads)
        assert params.w_q.shape == (H, M + bias, M // H)
        x = attention.append_one(X) if bias else X
        np.testing.assert_allclose(attention.apply(params, x), want, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kdim, vdim", [(None, None), (7, 7), (7, 5), (12, 5), (7, None)])
def test_pytorch_cross_attention_with_masks(kdim, vdim, bias):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    torch.manual_seed(1)
    layer = torch.nn.MultiheadAttention(M, H, kdim=kdim, vdim=vdim, bias=bias, batch_first=True)
    keys, values = memory(kdim or M), memory(vdim or M, 2)
    attn_mask = np.array(np.arange(S) <= np.arange(T)[:, None])
    with torch.no_grad():
        for weight in layer.parameters():
            weight.uniform_(-0.5, 0.5)
        tensors = [torch.from_numpy(rows)[None] for rows in (X, keys, values)]
        want = layer(*tensors, attn_mask=torch.from_numpy(~attn_mask), need_weights=False)[0][0]
    for source, heads in ((layer, None), (layer.state_dict(), H)):
        params = attention.from_torch(source, heads)
        ones = attention.append_one if bias else np.asarray
        pair = ones(keys), ones(values)
        output = attention.apply(params, ones(X), attn_mask, memory=pair)
        np.testing.assert_allclose(output, want.numpy(), atol=2e-5)
        merged = attention.apply_merged(attention.merge(params), ones(X), attn_mask, memory=pair)
        np.testing.assert_allclose(merged, want.numpy(), atol=5e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_flax_cross_attention_of_keys_and_values_of_other_widths(bias):
    linen = flax.linen.MultiHeadDotProductAttention(H, use_bias=bias)
    inputs = X[None], memory(7)[None], memory(5, 2)[None]
    variables = jax.tree.map(lambda w: w + 0.25, linen.init(KEY, *inputs))
    output = ours(attention.from_flax(variables), bias, inputs[1][0], inputs[2][0])
    np.testing.assert_allclose(output, linen.apply(variables, *inputs)[0], atol=2e-5)


@pytest.mark.parametrize("bias", [pytest.param(True, marks=pytest.mark.slow), False])
def test_flax_linen_and_nnx(bias):
    linen = flax.linen.MultiHeadDotProductAttention(
        H, qkv_features=15, out_features=4, use_bias=bias
    )
    variables = linen.init(KEY, X[None])
    module = nnx.MultiHeadAttention(H, M, 15, 4, use_bias=bias, decode=False, rngs=nnx.Rngs(0))
    grow = lambda w: w + 0.3 * jax.random.normal(KEY, w.shape)  # noqa: E731  biases start at zero
    variables = jax.tree.map(grow, variables)
    nnx.update(module, jax.tree.map(grow, nnx.state(module, nnx.Param)))
    expected = (
        (variables, linen.apply(variables, X[None])[0]),
        (variables["params"], linen.apply(variables, X[None])[0]),
        (module, module(X[None])[0]),
    )
    for source, want in expected:
        params = attention.from_flax(source)
        x = attention.append_one(X) if bias else X
        np.testing.assert_allclose(attention.apply(params, x), want, atol=1e-5)


def test_a_layer_with_biases_can_be_hidden():
    layer, want = torch_layer()
    target = attention.from_torch(layer)
    source = initializers.theory_attention(
        KEY, num_heads=H, d_in=M + 1, d_out=M, n_k=16 * (M + 1), n_v=16 * (M + 1)
    )
    masks = construction.prune_attention(source, target, construction="shift")
    ticket = construction.apply_masks(source, masks)
    output = attention.apply(ticket, attention.append_one(X))
    assert float(np.max(np.abs(output - want))) < 0.02 * float(np.abs(want).max())


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: torch_layer(add_bias_kv=True)[0],
            r"^source must be attention without add_bias_kv",
        ),
        (lambda: torch_layer(add_zero_attn=True)[0], r"^source must be attention without add_zero"),
        (lambda: torch_layer()[0].state_dict(), r"^num_heads must be given for a state dict"),
    ],
)
def test_other_pytorch_layers_are_refused(make, message):
    with refusals(message) as caught:
        attention.from_torch(make())
    assert "\n" not in str(caught.value)


def test_other_bad_input_is_named():
    with refusals(r"^num_heads must be the module's, 3, got 5"):
        attention.from_torch(torch_layer()[0], 5)
    with refusals(r"^num_heads must be a divisor of the width 12, got 5"):
        attention.from_torch(torch_layer()[0].state_dict(), 5)
    with refusals(r"^source must be torch.nn.MultiheadAttention or its state dict, got weights n"):
        attention.from_torch({**torch_layer(kdim=7)[0].state_dict(), "scale": X[0]}, H)
    with refusals(r"^source must be an attention layer of Flax, got no ker"):
        attention.from_flax({"query": {"kernel": jnp.ones((3, 1, 2))}})
    params = initializers.theory_attention(KEY, num_heads=2, d_in=3, d_out=4, n_k=5, n_v=6)
    with refusals(r"^value must be of shape \(2, 6\), got shape \(2, 5\)"):
        attention.with_biases(params, value=jnp.ones((2, 5)))


def drawn_options(seed, table):
    """Draw a value of every option of a layer."""
    rng = np.random.default_rng(seed)
    return {name: values[rng.integers(len(values))] for name, values in table.items()}


TORCH = {
    "dropout": (0.0, 0.3),
    "bias": (True, False),
    "add_bias_kv": (False, False, False, True),
    "add_zero_attn": (False, False, False, True),
    "kdim": (None, M, 7),
    "vdim": (None, M, M, 5),
    "batch_first": (True, False),
    "dtype": ("float32", "float64", "bfloat16", "float16"),
    "dropped": (None, None, "in_proj_bias", "out_proj.bias"),
}


@pytest.mark.parametrize("seed", range(24))
def test_a_pytorch_layer_of_any_options_is_read_whole_or_refused(seed):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    options = drawn_options(seed, TORCH)
    dropped, dtype = options.pop("dropped"), getattr(torch, options.pop("dtype"))
    torch.manual_seed(seed)
    layer = torch.nn.MultiheadAttention(M, H, **options).eval()
    with torch.no_grad():
        for weight in layer.parameters():  # its own biases start at zero
            weight.uniform_(-0.5, 0.5)
    layer = layer.to(dtype)
    state = {name: value for name, value in layer.state_dict().items() if name != dropped}
    sources = [(state, H)] if dropped and options["bias"] else [(layer, None), (state, H)]
    if options["add_zero_attn"]:
        sources = sources[:1] if sources[0][0] is layer else []  # a state dict does not contain it
    keys, values = memory(options["kdim"] or M), memory(options["vdim"] or M, 2)
    for source, heads in sources:
        if options["add_bias_kv"] or options["add_zero_attn"]:
            with refusals(r"^source must be attention without"):
                attention.from_torch(source, heads)
            continue
        params = attention.from_torch(source, heads)
        with torch.no_grad():
            reference = layer.float()
            if dropped and options["bias"]:
                attribute = reference.out_proj if dropped == "out_proj.bias" else reference
                getattr(attribute, dropped.rpartition(".")[2] or dropped).zero_()
            tensors = (
                torch.from_numpy(rows).unsqueeze(0 if options["batch_first"] else 1)
                for rows in (X, keys, values)
            )
            output = reference(*tensors, need_weights=False)[0].reshape(T, M).numpy()
        given = ours(params, params.w_q.shape[1] == M + 1, keys, values)
        np.testing.assert_allclose(given, output, atol=2e-5)


FLAX = {
    "qkv_features": (None, 6, 24),
    "out_features": (None, 4),
    "use_bias": (True, False),
    "normalize_qk": (False, False, False, True),
    "dropout_rate": (0.0, 0.2),
    "param_dtype": (jnp.float32, jnp.bfloat16),
    "attention_fn": (None, None, None, lambda *args, **kwargs: args[2]),
}
NNX = {**FLAX, "num_kv_heads": (None, 6, 2, 1), "in_kv_features": (None, M, 5)}


@pytest.mark.parametrize("seed", range(24))
def test_a_flax_layer_of_any_options_is_read_whole_or_refused(seed):
    """nnx modules, and parameters of linen, in which an attention_fn leaves no trace."""
    options = drawn_options(seed, NNX)
    function = options.pop("attention_fn")
    named = {} if function is None else {"attention_fn": function}
    heads = 6
    module = nnx.MultiHeadAttention(
        heads, M, **options, **named, decode=False, deterministic=True, rngs=nnx.Rngs(seed)
    )
    grown = jax.tree.map(lambda w: w + 0.25, nnx.state(module, nnx.Param))  # biases start at zero
    nnx.update(module, grown)
    rows = memory(options["in_kv_features"] or M)
    if options["normalize_qk"] or function:
        with refusals(r"^source must be attention"):
            attention.from_flax(module)
    else:
        check_flax(module, module(X[None], rows[None])[0], options["use_bias"], rows, rows)
    for name in ("num_kv_heads", "in_kv_features"):
        del options[name]
    layer = flax.linen.MultiHeadDotProductAttention(heads, **options, deterministic=True)
    variables = jax.tree.map(lambda w: w + 0.25, layer.init(KEY, X[None]))
    if options["normalize_qk"]:
        with refusals(r"^source must be attention of kernels .* got an array 'key_ln'"):
            attention.from_flax(variables)
    else:
        output = layer.apply(variables, X[None])[0]
        check_flax(variables, output, options["use_bias"])


def check_flax(source, output, bias, *others):
    given = ours(attention.from_flax(source), bias, *others)
    np.testing.assert_allclose(given, output, atol=1e-4, rtol=1e-4)


def test_float16_logits_stay_finite_where_pytorchs_do():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    layer = torch.nn.MultiheadAttention(64, 1, bias=False, batch_first=True)
    with torch.no_grad():
        layer.in_proj_weight.fill_(0.5)
    x = np.full((3, 64), 1.2, np.float16)
    params = jax.tree.map(lambda w: w.astype(jnp.float16), attention.from_torch(layer))
    # Queries and keys are 38.4: their product over 64 units is 94,000, beyond float16.
    output = np.asarray(attention.apply(params, jnp.asarray(x)), np.float32)
    wide = torch.from_numpy(x.astype(np.float32))[None]
    with torch.no_grad():
        expected = layer(wide, wide, wide, need_weights=False)[0][0].numpy()
    np.testing.assert_allclose(output, expected, rtol=5e-3, atol=5e-3)
