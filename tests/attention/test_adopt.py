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
KEY = jax.random.key(2, impl="threefry2x32")
X = np.array(jax.random.normal(KEY, (T, M)))


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
def test_flax_linen_and_nnx(bias):
    linen = flax.linen.MultiHeadDotProductAttention(
        H, qkv_features=15, out_features=4, use_bias=bias
    )
    variables = linen.init(KEY, X[None])
    module = nnx.MultiHeadAttention(H, M, 15, 4, use_bias=bias, decode=False, rngs=nnx.Rngs(0))
    grow = lambda w: w + 0.3 * jax.random.normal(KEY, w.shape)  # noqa: E731  biases start at zero
    variables = jax.tree.map(grow, variables)
    nnx.update(module, jax.tree.map(grow, nnx.state(module, nnx.Param)))
    wanted = (
        (variables, linen.apply(variables, X[None])[0]),
        (variables["params"], linen.apply(variables, X[None])[0]),
        (module, module(X[None])[0]),
    )
    for source, want in wanted:
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
    got = attention.apply(ticket, attention.append_one(X))
    assert float(np.max(np.abs(got - want))) < 0.02 * float(np.abs(want).max())


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: torch_layer(kdim=7)[0], r"^source must be torch.nn.MultiheadAttention with keys"),
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
    with refusals(r"^num_heads must be a divisor of the width 12, got 5"):
        attention.from_torch(torch_layer()[0], 5)
    with refusals(r"^source must be an attention layer of Flax, got no ker"):
        attention.from_flax({"query": {"kernel": jnp.ones((3, 1, 2))}})
    params = initializers.theory_attention(KEY, num_heads=2, d_in=3, d_out=4, n_k=5, n_v=6)
    with refusals(r"^value must be of shape \(2, 6\), got shape \(2, 5\)"):
        attention.with_biases(params, value=jnp.ones((2, 5)))
