"""The paper's bounds (arXiv:2511.04217) as plain functions of floats.

Widths have the form ``n >= d C log(...)``. The theory does not give the value of the universal
constant C, which can only be estimated by measurement (`MEASURED`). Functions take C as the
argument `constant`. `product_error`, `relu_error` and `attention_error` are inverses of
`product_width`, `relu_width` and `attention_widths`: they return the error for which a width
suffices. Logarithms of factors are added, so that no product leaves the range of floats. An error
beyond the range of floats is returned as `math.inf`.
"""

import math
from typing import NamedTuple

from slth_jax import checks


class Widths(NamedTuple):
    """The key width and the value width that a theorem requires of a source."""

    n_k: int
    n_v: int


class BlockWidths(NamedTuple):
    """The source widths for a block: n_mha = n_k = n_v for attention, n_fc for ReLU layers."""

    n_mha: int
    n_fc: int


def product_width(epsilon: float, *, d_in: int, d_out: int, constant: float) -> int:
    """Return the width n at which masked random matrices approximate a target (Lemmas 4, 7).

    ``n >= d_in C log(d_in d_out / epsilon)``. At this width the error of every entry of a target
    `[d_out, d_in]` is at most ``epsilon / (d_in d_out)`` with probability at least ``1 - epsilon``.
    """
    _positive(epsilon=epsilon, d_in=d_in, d_out=d_out, constant=constant)
    return _width(d_in, constant, math.log(d_in) + math.log(d_out) - math.log(epsilon))


def counting_width(
    epsilon: float,
    *,
    d_in: int,
    d_out: int,
    alpha: float,
    num_heads: int = 1,
    masks: str = "any",
) -> int:
    """Return the width below which there are too few masks to approximate every target.

    The width is ``n >= d_in d_out log2(H alpha / epsilon) / (H b)`` for H heads, if each hidden
    unit has ``2^b`` different masks (in the value and the output matrix together). For a single
    token of norm up to alpha, the output depends only on the sum of the merged value-output
    matrices of all heads. The error is at most epsilon only if the sum of the ticket and the sum of
    the target differ by at most ``epsilon / alpha`` in the spectral norm. If the value width of
    targets is at least ``min(d_in, d_out)``, the sums of all targets of norm 1 fill a ball of
    radius H. By volume, at least ``(H alpha / epsilon)^(d_in d_out)`` balls of radius ``epsilon /
    alpha`` are needed to cover a ball of radius H. If the target's heads have width ``d / H``, the
    sums of all targets contain only the ball of radius 1; in this case pass ``alpha / H`` as
    `alpha`.

    The bound holds for the worst target and input, whereas measured laws are averages over random
    targets and inputs.

    Args:
      epsilon, alpha: the error, and the norm of the token.
      d_in, d_out, num_heads: the shape of the layer.
      masks: the masks that are allowed, in the value and the output matrix. 'any': all masks, ``b =
        d_in + d_out``. 'assigned': in the grouped factor (either the value or the output matrix)
        each unit keeps one entry, whose position depends on the target, as in the rule 'fitted';
        ``b = max(d_in, d_out) + log2(min(d_in, d_out))``. 'fixed': the mask of the grouped factor
        does not depend on the target, as in the rules 'proof', 'reach' and 'shift'; ``b = max(d_in,
        d_out)``.
    """
    _positive(epsilon=epsilon, d_in=d_in, d_out=d_out, alpha=alpha, num_heads=num_heads)
    small, large = sorted((d_in, d_out))
    bits = {"any": small + large, "assigned": large + math.log2(small), "fixed": large}
    bits_per_unit = bits[checks.choice("masks", masks, bits)]
    precision = max(math.log2(num_heads) + math.log2(alpha) - math.log2(epsilon), 0.0)
    return math.ceil(d_in * d_out * precision / (num_heads * bits_per_unit))


def product_error(n: int, *, d_in: int, d_out: int, constant: float) -> float:
    """Return the error epsilon of Lemma 4 at width `n`: ``d_in d_out exp(-n / (d_in C))``."""
    _positive(n=n, d_in=d_in, d_out=d_out, constant=constant)
    return d_in * d_out * math.exp(-n / (d_in * constant))


def relu_width(epsilon: float, *, d_in: int, d_out: int, constant: float) -> int:
    """Return the width n at which a masked ReLU net approximates a linear map (Lemma 2).

    ``n >= d_in C log(2 d_in d_out / epsilon)`` (Pensia et al. 2020).
    """
    _positive(epsilon=epsilon, d_in=d_in, d_out=d_out, constant=constant)
    return _width(d_in, constant, math.log(2 * d_in) + math.log(d_out) - math.log(epsilon))


def relu_error(n: int, *, d_in: int, d_out: int, constant: float) -> float:
    """Return the error epsilon of Lemma 2 at width `n`: ``2 d_in d_out exp(-n / (d_in C))``."""
    return 2 * product_error(n, d_in=d_in, d_out=d_out, constant=constant)


def softmax_error(logit_error: float, *, d_in: int, alpha: float) -> float:
    """Bound the change of attention's output if its logits change (Lemmas 5 and 8).

    ``||p X - p' X|| <= sqrt(d_in) alpha (exp(2 e) - 1)`` if logits change by at most e =
    `logit_error` and tokens have norms of at most `alpha`. The bound does not depend on the number
    of tokens.
    """
    _positive(d_in=d_in, alpha=alpha)
    checks.number("logit_error", logit_error, low=0)
    return math.sqrt(d_in) * alpha * _expm1(2 * logit_error)


def sharp_softmax_error(logit_error: float, *, alpha: float) -> float:
    """Bound the same change as `softmax_error`, more tightly: ``2 tanh(e / 2) alpha``.

    If the logits of two softmax rows differ by at most e, the rows differ by at most ``2 tanh(e /
    2)`` in the 1-norm. Compared with `softmax_error`, this bound has no factor ``sqrt(d_in)`` and
    half the slope in e, and it is never above ``2 alpha``.
    """
    _positive(alpha=alpha)
    return 2 * math.tanh(checks.number("logit_error", logit_error, low=0) / 2) * alpha


class MeasuredLaw(NamedTuple):
    """A measured formula for the width at which tickets have a given error, and where it holds.

    ``n_k = n_v = d margin (intercept + slope log(1 / epsilon) + log_d log(d) + log_heads log(H) +
    small / d^2)``. The formula has the form of Theorem 3, in which C = `slope`, ``log_d = 3/2 C``
    and ``log_heads = C``. In this class `slope`, `log_d` and `log_heads` are measured, and ``small
    / d^2`` is a correction for small d. At every measured point the mean error over sources is at
    most epsilon at the width of the formula, and above epsilon at half this width (`python -m
    experiments width-law`).
    """

    intercept: float
    slope: float
    log_d: float
    log_heads: float
    small: float
    margin: float
    shapes: tuple[tuple[int, int], ...]  # d = d_in = d_out, and H
    epsilon: tuple[float, float]

    def width(self, epsilon: float, *, d: int, num_heads: int) -> int:
        """Return the width ``n_k = n_v`` at which the mean error is at most epsilon."""
        logs = -self.slope * math.log(epsilon) + self.log_d * math.log(d)
        logs += self.log_heads * math.log(num_heads)
        units = self.intercept + logs + self.small / d**2
        return max(d, math.ceil(d * self.margin * units))

    def covers(self, d: int, num_heads: int) -> bool:
        """Return whether (log d, log H) lies in the convex hull of the measured shapes.

        The directions from the point to all measured shapes are sorted. The point lies in the hull
        if no angle between neighbouring directions is above pi.
        """
        if (d, num_heads) in self.shapes:
            return True
        angles = sorted(
            math.atan2(math.log(heads / num_heads), math.log(width / d))
            for width, heads in self.shapes
        )
        following = [*angles[1:], angles[0] + 2 * math.pi]
        gaps = (after - before for before, after in zip(angles, following, strict=True))
        return max(gaps) <= math.pi + 1e-9

    def nearest(self, d: int, num_heads: int) -> tuple[int, int]:
        """Return the measured shape (d, H) that is nearest to the given shape in (log d, log H)."""
        return min(
            self.shapes,
            key=lambda shape: math.hypot(math.log(shape[0] / d), math.log(shape[1] / num_heads)),
        )


MEASURED = {
    "fitted": MeasuredLaw(
        intercept=-1.762,
        slope=1.655,
        log_d=1.521,
        log_heads=1.017,
        small=12.61,
        margin=1.23,
        shapes=(
            *((d, 1) for d in (2, 4, 8, 16, 32, 64, 128)),
            *((d, 4) for d in (4, 8, 16, 32)),
            *((8, 16), (24, 8), (48, 3)),
        ),
        epsilon=(3e-4, 0.3),
    )
}
"""Measured laws by rule of construction, for random targets of spectral norm 1, with d_in = d_out
and alpha = sqrt(d)."""

# If a measured law is used, alpha may exceed sqrt(d) up to the first factor, and d_in and d_out may
# differ up to the second factor.
ALPHA_TOLERANCE, SHAPE_TOLERANCE = 1.1, 1.25


def attention_widths(
    epsilon: float,
    *,
    d_in: int,
    d_out: int,
    num_heads: int,
    alpha: float,
    constant: float | str,
    construction: str = "fitted",
) -> Widths:
    """Return source widths for tickets of attention with error `epsilon` (Theorems 3 and 9).

    ``n_k >= d_in C log(8 H alpha^3 d_in^(3/2) / epsilon)`` and ``n_v >= d_in C log(2 H alpha d_in
    sqrt(d_out) / epsilon)``. These widths suffice with probability at least ``1 - epsilon``, for
    tokens of norm at most alpha and target projections of spectral norm at most 1. alpha must be at
    least ``sqrt(d_in)`` and ``sqrt(d_out)``.

    If `constant` is 'measured', the widths follow the measured law of the rule `construction`
    (`MEASURED`). The law was measured with ``n_k = n_v``, and its epsilon is the mean error over
    sources. The law is used for alpha up to 1.1 sqrt(d), where d is the larger of d_in and d_out.
    Errors grow at most as alpha^3, so ``epsilon / (alpha / sqrt(d))^3`` takes the place of epsilon.
    d_in and d_out may differ by 1 or by a factor of at most 1.25.

    Raises:
      ValueError: `constant` is 'measured', and the rule, shape, norm or error is outside the
        measured region; the error message names the nearest measured shape.

    Examples:
      >>> attention_widths(0.01, d_in=4, d_out=4, num_heads=2, alpha=2, constant=3)
      Widths(n_k=139, n_v=106)
      >>> attention_widths(0.01, d_in=5, d_out=4, num_heads=2, alpha=2.25, constant="measured")
      Widths(n_k=59, n_v=59)
    """
    _positive(epsilon=epsilon, d_in=d_in, d_out=d_out, num_heads=num_heads)
    _check_alpha(alpha, d_in, d_out)
    if isinstance(constant, str):
        checks.choice("constant", constant, ("measured",))
        law = MEASURED[checks.choice("construction", construction, MEASURED)]
        d, factor = max(d_in, d_out), alpha / math.sqrt(max(d_in, d_out))
        _check_measured(law, epsilon, d_in, d_out, num_heads, factor)
        n = law.width(epsilon / max(factor, 1.0) ** 3, d=d, num_heads=num_heads)
        return Widths(n, n)
    _positive(constant=constant)
    qk, vo = _attention_logs(d_in, d_out, num_heads, alpha)
    log_epsilon = math.log(epsilon)
    return Widths(
        _width(d_in, constant, qk - log_epsilon), _width(d_in, constant, vo - log_epsilon)
    )


def attention_error(
    n_k: int,
    n_v: int,
    *,
    d_in: int,
    d_out: int,
    num_heads: int,
    alpha: float,
    constant: float,
) -> float:
    """Return the least epsilon at which `attention_widths` returns at most `n_k` and `n_v`."""
    _positive(n_k=n_k, n_v=n_v, d_in=d_in, d_out=d_out, num_heads=num_heads, constant=constant)
    _check_alpha(alpha, d_in, d_out)
    qk, vo = _attention_logs(d_in, d_out, num_heads, alpha)
    return _exp(max(qk - n_k / (d_in * constant), vo - n_v / (d_in * constant)))


def relu_network_width(
    epsilon: float, *, d_in: int, d_out: int, num_layers: int, constant: float
) -> int:
    """Return the width of each source layer for a ReLU net of L = `num_layers` layers (Theorem 10).

    ``n >= d_in C log(4 L d_in d_out / epsilon)``. At this width a ticket of a source with 2 L
    layers has at most the error `relu_network_error`.
    """
    _positive(epsilon=epsilon, d_in=d_in, d_out=d_out, num_layers=num_layers, constant=constant)
    log_ratio = math.log(4 * num_layers) + math.log(d_in) + math.log(d_out) - math.log(epsilon)
    return _width(d_in, constant, log_ratio)


def relu_network_error(epsilon: float, *, alpha: float) -> float:
    """Return the error in Theorem 10, ``exp(alpha epsilon / 2) - 1``, for ``alpha >= 1``."""
    _positive(epsilon=epsilon)
    checks.number("alpha", alpha, low=1)
    return _expm1(alpha * epsilon / 2)


def block_widths(
    epsilon: float, *, d_in: int, num_heads: int, num_layers: int, alpha: float, constant: float
) -> BlockWidths:
    """Return source widths for a block ``F(Attn(x) + x) + Attn(x) + x`` (Theorem 11).

    ``n_mha >= d C log(32 alpha^3 H d^(3/2) / epsilon)``, ``n_fc >= d C log(24 alpha L H d^(5/2) /
    epsilon)``; F has L = `num_layers` layers.
    """
    _positive(
        epsilon=epsilon, d_in=d_in, num_heads=num_heads, num_layers=num_layers, constant=constant
    )
    _check_alpha(alpha, d_in, d_in)
    return _block_widths(math.log(epsilon), d_in, num_heads, num_layers, math.log(alpha), constant)


def _block_widths(
    log_epsilon: float,
    d_in: int,
    num_heads: int,
    num_layers: int,
    log_alpha: float,
    constant: float,
) -> BlockWidths:
    mha = math.log(32 * num_heads) + 3 * log_alpha + 1.5 * math.log(d_in)
    fc = math.log(24 * num_layers * num_heads) + log_alpha + 2.5 * math.log(d_in)
    return BlockWidths(
        _width(d_in, constant, mha - log_epsilon), _width(d_in, constant, fc - log_epsilon)
    )


def transformer_budgets(
    epsilon: float, *, d_in: int, num_heads: int, num_blocks: int, alpha: float
) -> list[tuple[float, float]]:
    """Return each block's input bound and error budget, ``[(beta_b, eps_b)]`` (Theorems 6, 14).

    ``beta_b = alpha (4 H sqrt(d))^(b-1)``. The budget of the last block is ``epsilon / 2``, and the
    budget of an earlier block b is ``eps_b = eps_(b+1) / (32 H sqrt(d) beta_(b+1)^2)``. The first
    block has twice the budget that the formula gives, because it has no predecessor.

    Raises:
      ValueError: a bound or a budget is beyond the range of floats. `transformer_widths` has no
        such limit, because it computes with logarithms.
    """
    logs = _log_budgets(epsilon, d_in, num_heads, num_blocks, alpha)
    budgets = [(_exp(log_beta), _exp(log_budget)) for log_beta, log_budget in logs]
    if any(not 0 < number < math.inf for pair in budgets for number in pair):
        allowed = "so small that bounds and budgets are within the range of floats"
        raise checks.fail("num_blocks", allowed, num_blocks)
    return budgets


def _log_budgets(
    epsilon: float, d_in: int, num_heads: int, num_blocks: int, alpha: float
) -> list[tuple[float, float]]:
    """Return the logarithms of the numbers that `transformer_budgets` returns."""
    _positive(epsilon=epsilon, d_in=d_in, num_heads=num_heads)
    checks.integer("num_blocks", num_blocks, low=1)
    _check_alpha(alpha, d_in, d_in)
    growth = math.log(4 * num_heads) + math.log(d_in) / 2
    log_betas = [math.log(alpha) + b * growth for b in range(num_blocks)]
    budgets = []
    for b in range(num_blocks):
        # B - b + 1 halvings for the paper's block b >= 2 and B - 1 for block 1.
        halvings = num_blocks - 1 if b == 0 else num_blocks - b
        later = sum(math.log(4) + growth + 2 * log_beta for log_beta in log_betas[b + 1 :])
        budgets.append(math.log(epsilon) - halvings * math.log(2) - later)
    return list(zip(log_betas, budgets, strict=True))


def transformer_widths(
    epsilon: float,
    *,
    d_in: int,
    num_heads: int,
    num_layers: int,
    num_blocks: int,
    alpha: float,
    constant: float,
) -> list[BlockWidths]:
    """Return source widths for each block of a transformer without norms (Theorems 6 and 14).

    The widths of a block are the `block_widths` for its budget in `transformer_budgets`. The input
    bound of the first block is alpha, and the input bound of each later block b is ``2 beta_b``.
    For a single block the widths are those of Theorem 11.
    """
    _positive(num_layers=num_layers, constant=constant)
    logs = _log_budgets(epsilon, d_in, num_heads, num_blocks, alpha)
    return [
        _block_widths(
            log_budget,
            d_in,
            num_heads,
            num_layers,
            log_beta if b == 0 else log_beta + math.log(2),
            constant,
        )
        for b, (log_beta, log_budget) in enumerate(logs)
    ]


def _attention_logs(d_in: int, d_out: int, num_heads: int, alpha: float) -> tuple[float, float]:
    """Return the logarithms in Theorem 9 for the key and the value width, with epsilon = 1."""
    qk = math.log(8 * num_heads) + 3 * math.log(alpha) + 1.5 * math.log(d_in)
    vo = math.log(2 * num_heads) + math.log(alpha) + math.log(d_in) + math.log(d_out) / 2
    return qk, vo


def _width(d: int, constant: float, log_ratio: float) -> int:
    """Return the least width with ``n >= d C log(ratio)`` and at least one unit per coordinate."""
    n = d * constant * log_ratio
    if not math.isfinite(n):
        raise checks.fail("constant", "so small that widths are finite", constant)
    return max(d, math.ceil(n))


def _exp(x: float) -> float:
    """Return e^x, or infinity beyond the range of floats."""
    return math.exp(x) if x < 709.78 else math.inf


def _expm1(x: float) -> float:
    """Return e^x - 1, or infinity beyond the range of floats."""
    return math.expm1(x) if x < 709.78 else math.inf


def _check_alpha(alpha: float, d_in: int, d_out: int) -> None:
    checks.number("alpha", alpha, low=math.sqrt(max(d_in, d_out)) * (1 - 1e-6))


def _check_measured(
    law: MeasuredLaw, epsilon: float, d_in: int, d_out: int, num_heads: int, factor: float
) -> None:
    """Refuse an error, shape or norm outside the region in which a law was measured."""
    d, small = max(d_in, d_out), min(d_in, d_out)
    near_d, near_heads = law.nearest(d, num_heads)
    nearest = f"(the nearest measured shape is d_in = d_out = {near_d}, num_heads = {near_heads})"
    if d > SHAPE_TOLERANCE * small and d - small > 1:
        allowed = f"within 1 or a factor {SHAPE_TOLERANCE:g} of d_in = {d_in} {nearest}"
        raise checks.fail("d_out", allowed, d_out)
    if not law.covers(d, num_heads):
        raise checks.fail(
            "d_in and num_heads", f"in the measured region {nearest}", f"{d} and {num_heads}"
        )
    if factor > ALPHA_TOLERANCE * (1 + 1e-6):
        allowed = f"at most {ALPHA_TOLERANCE:g} sqrt(d) = {ALPHA_TOLERANCE * math.sqrt(d):.4g}"
        raise checks.fail("alpha", f"{allowed} {nearest}", f"{factor * math.sqrt(d):g}")
    low, high = law.epsilon
    if not low * (1 - 1e-6) <= epsilon <= high * (1 + 1e-6):
        raise checks.fail("epsilon", f"from {low:g} to {high:g}, as measured", f"{epsilon:g}")


def _positive(**values: float) -> None:
    for name, value in values.items():
        checks.number(name, value, low=0, open_low=True)
