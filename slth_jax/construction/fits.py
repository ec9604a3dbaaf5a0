"""Whether a source and a target fit together: shapes, widths, values, biases."""

from collections.abc import Sequence

import numpy as np

from slth_jax import checks
from slth_jax.construction.rules.deal import Rule
from slth_jax.transformer import Linear
from slth_jax.types import ArrayLike, AttentionParams


def check_width(name: str, n: int, width: ArrayLike | None, needed: int) -> None:
    """Refuse a source that has less than one hidden unit for each of `needed` groups."""
    if n < needed:
        raise checks.fail(name, f"at least {needed}, one hidden unit per group", n)
    known = None if width is None else checks.concrete(width)
    if known is not None:
        checks.integer(name, known.item(), low=needed, high=n)


def check_attention(
    source: AttentionParams, target: AttentionParams, rule: Rule, widths: tuple
) -> None:
    """Refuse a source and a target that do not fit."""
    h, m, _ = checks.array("target.w_q", target.w_q, ndim=3).shape
    checks.array("target.w_k", target.w_k, shape=target.w_q.shape)
    d_v = checks.array("target.w_v", target.w_v, shape=(h, m, None)).shape[-1]
    o = checks.array("target.w_o", target.w_o, shape=(h, d_v, None)).shape[-1]
    n_k = checks.array("source.w_q", source.w_q, shape=(h, m, None)).shape[-1]
    checks.array("source.w_k", source.w_k, shape=(h, m, n_k))
    n_v = checks.array("source.w_v", source.w_v, shape=(h, m, None)).shape[-1]
    checks.array("source.w_o", source.w_o, shape=(h, n_v, o))
    check_width("source n_k", n_k, widths[0], m)
    check_width("source n_v", n_v, widths[1], min(m, o) if rule.either_side else m)


def check_layers(
    source: Sequence[Linear],
    target: Sequence[Linear],
    widths: Sequence[ArrayLike] | None,
    names: tuple[str, str, str] | None = None,
) -> tuple[ArrayLike, ...]:
    """Refuse ReLU nets that do not fit, and return the hidden widths.

    `names` are those of the first pair of layers and of its target in the error messages.
    """
    if len(source) != 2 * len(target):
        allowed = f"a ReLU net of {2 * len(target)} layers, twice the target's"
        raise checks.fail("source", allowed, f"{len(source)} layers")
    if widths is not None and len(widths) != len(target):
        raise checks.fail("widths", f"{len(target)} numbers, one a layer", len(widths))
    found: list[ArrayLike] = []
    for l, layer in enumerate(target):
        first, second = source[2 * l], source[2 * l + 1]
        of1, of2, of_target = names or (
            f"source[{2 * l}].w",
            f"source[{2 * l + 1}].w",
            f"target[{l}].w",
        )
        o, i = checks.array(of_target, layer.w, ndim=2).shape
        n = checks.array(of1, first.w, shape=(None, i)).shape[0]
        checks.array(of2, second.w, shape=(o, n))
        width = None if widths is None else widths[l]
        check_width(f"the hidden width n of {of1} and {of2}", n, width, 2 * i)
        check_biases(first, second, layer)
        found.append(n if width is None else width)
    return tuple(found)


def check_biases(first: Linear, second: Linear, target: Linear) -> None:
    """Refuse a pair of source layers that does not hold the biases of the target's layer."""
    differ = (second.b is None) != (target.b is None)
    if second.b is not None and target.b is not None:
        held, wanted = checks.concrete(second.b), checks.concrete(target.b)
        if held is not None and wanted is not None:
            differ = not np.array_equal(held, wanted)
    if differ or first.b is not None:
        raise checks.fail("source", "a net with the target's biases on its odd layers", "others")
