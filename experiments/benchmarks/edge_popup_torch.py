"""Train GPT-2 by edge-popup in PyTorch; every step sorts each layer's scores, as published.

`GetSubnet` computes the mask as in Ramanujan et al. (github.com/allenai/hidden-networks): it sorts
the n numbers |scores|, sets the mask to 0 at the smallest ``(1 - k) n`` of these numbers and to 1
at all others, and passes the gradient through unchanged. The model uses PyTorch's fast functions
(`scaled_dot_product_attention`, `layer_norm`, `AdamW`).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from experiments.language.model import Model, Params
from slth_jax.models import Settings


class GetSubnet(torch.autograd.Function):
    """An autograd function that returns the mask of the largest scores, and passes gradients on."""

    @staticmethod
    def forward(ctx, scores, keep):
        """Return the mask, which is 1 at the fraction `keep` of largest scores and 0 elsewhere."""
        out = scores.clone()
        _, order = scores.flatten().sort()
        pruned = int((1 - keep) * scores.numel())
        flat = out.flatten()
        flat[order[:pruned]] = 0
        flat[order[pruned:]] = 1
        return out

    @staticmethod
    def backward(ctx, gradient):
        """Return the gradient unchanged."""
        return gradient, None


def make_step(
    model: Model, weights: Params, *, keep: float | None, learning_rate: float
) -> Callable[[np.ndarray], float]:
    """Return ``step(tokens) -> loss``, which trains scores or, if `keep` is None, all weights."""
    arrays = {name: torch.tensor(np.asarray(value)) for name, value in weights.items()}
    matrices = {name: arrays[name] for name in model.shapes}
    # Each layer has a separate tensor because it is a separate module in the published code.
    layers = {name: list(w) if w.ndim == 3 else [w] for name, w in matrices.items()}
    if keep is None:
        trained = {n: [w.clone().requires_grad_() for w in ws] for n, ws in layers.items()}
    else:
        trained = {n: [_scores(w) for w in ws] for n, ws in layers.items()}
    optimizer = torch.optim.AdamW([leaf for ws in trained.values() for leaf in ws], learning_rate)

    def parameters() -> dict[str, Any]:
        params: dict[str, Any] = dict(arrays)
        for name, leaves in trained.items():
            used = leaves
            if keep is not None:
                pairs = zip(layers[name], leaves, strict=True)
                used = [w * GetSubnet.apply(s.abs(), keep) for w, s in pairs]
            params[name] = used if matrices[name].ndim == 3 else used[0]
        return params

    def step(tokens: np.ndarray) -> float:
        optimizer.zero_grad()
        loss = _loss(parameters(), torch.from_numpy(tokens.astype(np.int64)), model.settings)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def _scores(weight: torch.Tensor) -> torch.Tensor:
    bound = weight.shape[-2] ** -0.5
    return torch.empty_like(weight).uniform_(-bound, bound).requires_grad_()


def _loss(params, tokens: torch.Tensor, settings: Settings) -> torch.Tensor:
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    n, t = inputs.shape
    d, heads = settings.width, settings.num_heads
    x = F.embedding(inputs, params["wte"]) + params["wpe"][:t]
    for b in range(settings.num_blocks):
        block = {name[2:]: value[b] for name, value in params.items() if name.startswith("h.")}
        hidden = F.layer_norm(x, (d,), block["ln_1.gain"], block["ln_1.bias"])
        q, k, v = (
            (hidden @ block[f"attn.{name}"] + block[f"attn.{name}.bias"])
            .view(n, t, heads, -1)
            .transpose(1, 2)
            for name in "qkv"
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        mixed = mixed.transpose(1, 2).reshape(n, t, d)
        x = x + mixed @ block["attn.o"] + block["attn.o.bias"]
        hidden = F.layer_norm(x, (d,), block["ln_2.gain"], block["ln_2.bias"])
        hidden = F.relu(hidden @ block["mlp.in"] + block["mlp.in.bias"])
        x = x + hidden @ block["mlp.out"] + block["mlp.out.bias"]
    x = F.layer_norm(x, (d,), params["ln_f.gain"], params["ln_f.bias"])
    logits = x @ params["wte"].T
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())
