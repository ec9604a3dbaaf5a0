"""Demonstrate the strong lottery ticket theorem for attention: python one_ticket.py

A random attention layer is drawn and never trained. The program computes masks (0 or 1 per weight);
the masked layer approximates a given attention layer. The construction is Lemma 4 of Otsuka et al.
(arXiv:2511.04217), with exact subset sums.
"""

import jax
import jax.numpy as jnp

from slth_jax import subset_sum

HEADS, D, D_TARGET, TOKENS = 2, 3, 4, 8
UNITS = 18  # hidden units per input coordinate = samples per subset sum
N = UNITS * D  # hidden width of the random layer


def draw(key, width):
    """Draw w_q, w_k, w_v [h, d, n] and w_o [h, n, d] with entries uniform on [-1, 1]."""
    shapes = [(HEADS, D, width)] * 3 + [(HEADS, width, D)]
    keys = jax.random.split(key, 4)
    return [jax.random.uniform(k, s, minval=-1) for k, s in zip(keys, shapes, strict=True)]


def attention(x, w_q, w_k, w_v, w_o):
    """Apply one head to x [t, d].

    The logits' factor 1 / sqrt(n) is omitted: the paper's factors n^(1/4) of w_q and w_k cancel it.
    """
    weights = jax.nn.softmax((x @ w_q) @ (x @ w_k).T)  # [t, t]
    return weights @ (x @ w_v) @ w_o  # [t, d]


def prune_product(free, grouped, target):
    """Return masks with (free * free_mask) @ (grouped * grouped_mask).T close to target [d, d].

    Row j of `grouped` [d, n] keeps the hidden units of group j only. Entry (i, j) of the product is
    then a sum over group j, and row i of free_mask chooses which terms of this sum are added.
    """
    grouped_mask = jnp.arange(N)[None] // UNITS == jnp.arange(D)[:, None]  # [d, n]
    terms = free * jnp.sum(grouped * grouped_mask, axis=0, keepdims=True)  # [d, n]
    solution = subset_sum.solve(terms.reshape(D, D, UNITS), target)  # the best of 2^UNITS sums
    return solution.mask.reshape(D, N), grouped_mask


@jax.vmap  # over heads
def prune_attention(source, target):
    """Return the masks of the source's four projections."""
    (s_q, s_k, s_v, s_o), (w_q, w_k, w_v, w_o) = source, target
    m_q, m_k = prune_product(s_q, s_k, w_q @ w_k.T)  # attention depends on its weights only
    m_o, m_v = prune_product(s_o.T, s_v, (w_v @ w_o).T)  # through these two products
    return m_q, m_k, m_v, m_o.T


def main(key):
    """Return the largest output of the target and the largest error of the ticket's outputs."""
    for_target, for_source, for_x = jax.random.split(key, 3)
    target = [
        w / jnp.linalg.norm(w, 2, axis=(1, 2), keepdims=True) for w in draw(for_target, D_TARGET)
    ]
    source = draw(for_source, N)
    masks = prune_attention(source, target)
    ticket = [w * m for w, m in zip(source, masks, strict=True)]  # no weight was changed
    x = jax.random.normal(for_x, (TOKENS, D))
    heads = jax.vmap(lambda *weights: attention(x, *weights))
    outputs, approximation = (heads(*layer).sum(axis=0) for layer in (target, ticket))
    return abs(outputs).max(), abs(approximation - outputs).max()


if __name__ == "__main__":
    print("largest output {:.2f}, largest error {:.1e}".format(*main(jax.random.key(0))))
