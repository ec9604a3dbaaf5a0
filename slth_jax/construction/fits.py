"""Whether a source and a target fit together: shapes, widths, values, biases."""

from collections.abc import Sequence
from functools import partial

import numpy as np

from slth_jax import checks
from slth_jax.construction import matrices
from slth_jax.construction.rules.deal import Rule
from slth_jax.transformer import Linear
from slth_jax.types import ArrayLike, AttentionParams


def check_width(name: str, n: int, width: ArrayLike, needed: int) -> None:
    """Refuse a source that has less than one hidden unit for each of `needed` groups.

    `n` counts the padding, `width` does not; it may be traced, or one for each of a batch.
    """
    known = checks.concrete(width)
    least = n if known is None else min(n, int(known.min()))
    if least < needed:
        raise checks.fail(name, f"at least {needed}, one hidden unit per group", least)


def check_attention(source: AttentionParams, target: AttentionParams, rule: Rule) -> None:
    """Refuse a source and a target that do not fit."""
    wide = partial(checks.array, kind="wide")
    h, m, _ = wide("target.w_q", target.w_q, ndim=3).shape
    wide("target.w_k", target.w_k, shape=target.w_q.shape)
    d_v = wide("target.w_v", target.w_v, shape=(h, m, None)).shape[-1]
    o = wide("target.w_o", target.w_o, shape=(h, d_v, None)).shape[-1]
    n_k = wide("source.w_q", source.w_q, shape=(h, m, None)).shape[-1]
    wide("source.w_k", source.w_k, shape=(h, m, n_k))
    n_v = wide("source.w_v", source.w_v, shape=(h, m, None)).shape[-1]
    wide("source.w_o", source.w_o, shape=(h, n_v, o))
    check_width("source n_k", n_k, source.key_width, m)
    check_width("source n_v", n_v, source.value_width, min(m, o) if rule.either_side else m)


def check_layers(
    source: Sequence[Linear],
    target: Sequence[Linear],
    names: tuple[str, str, str] | None = None,
) -> None:
    """Refuse ReLU nets that do not fit.

    `names` are those of the first pair of layers and of its target in the error messages.
    """
    if len(source) != 2 * len(target):
        allowed = f"a ReLU net of {2 * len(target)} layers, twice the target's"
        raise checks.fail("source", allowed, f"{len(source)} layers")
    for l, layer in enumerate(target):
        first, second = source[2 * l], source[2 * l + 1]
        of1, of2, of_target = names or (
            f"source[{2 * l}].w",
            f"source[{2 * l + 1}].w",
            f"target[{l}].w",
        )
        o, i = checks.array(of_target, layer.w, ndim=2, kind="wide").shape
        w1 = checks.array(of1, first.w, shape=(None, i), kind="wide")
        w2 = checks.array(of2, second.w, shape=(o, w1.shape[0]), kind="wide")
        width = matrices.hidden_width(w2, w1)
        check_width(f"the hidden width n of {of1} and {of2}", w1.shape[0], width, 2 * i)
        check_biases(first, second, layer)


def check_biases(first: Linear, second: Linear, target: Linear) -> None:
    """Refuse a pair of source layers that does not hold the biases of the target's layer."""
    differ = (second.b is None) != (target.b is None)
    if second.b is not None and target.b is not None:
        held, wanted = checks.concrete(second.b), checks.concrete(target.b)
        if held is not None and wanted is not None:
            differ = not np.array_equal(held, wanted)
    if differ or first.b is not None:
        raise checks.fail("source", "a net with the target's biases on its odd layers", "others")
