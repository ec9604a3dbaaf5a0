"""The paper's bounds (arXiv:2511.04217) as plain functions of floats.

Widths are of the form ``n >= d C log(...)`` with a universal constant C that the theory leaves
unnamed: it is the required argument `constant`, and can only be estimated by measurement
(`MEASURED`). Each bound on a width has its inverse beside it, the error that a width is good for.
"""

import math
from typing import NamedTuple

from slth_jax import checks


class Widths(NamedTuple):
    """Source widths that a theorem asks for."""

    n_k: int
    n_v: int


class BlockWidths(NamedTuple):
    """Source widths of one transformer block: attention (n_k = n_v) and ReLU layers."""

    n_mha: int
    n_fc: int


def product_width(epsilon: float, *, d_in: int, d_out: int, constant: float) -> int:
    """Width n of two random matrices that contain a target `[d_out, d_in]` (Lemmas 4 and 7).

    ``n >= d_in C log(d_in d_out / epsilon)``; then every entry is met within
    ``epsilon / (d_in d_out)`` with probability at least ``1 - epsilon``.
    """
    _positive(epsilon=epsilon, d_in=d_in, d_out=d_out, constant=constant)
    return _width(d_in, constant, d_in * d_out / epsilon)


def counting_width(epsilon: float, *, d_in: int, d_out: int, alpha: float) -> int:
    """Width below which no construction serves every target: there are too few masks.

    ``n >= d_in d_out log2(alpha / epsilon) / (d_in + d_out)``. Value and output masks of width n
    are ``2^(n (d_in + d_out))``; on one token of norm up to alpha, a ticket is within epsilon of a
    target only if their merged matrices are within ``epsilon / alpha`` in the spectral norm, and a
    covering of that norm's unit ball by such balls has at least ``(alpha / epsilon)^(d_in d_out)``
    of them (by volume). Where the grouped factor's mask does not depend on the target, as in all
    rules here, only the ``n d_out`` bits of the other count, and the least width is
    ``d_in log2(alpha / epsilon)``.
    """
    _positive(epsilon=epsilon, d_in=d_in, d_out=d_out, alpha=alpha)
    bits = d_in * d_out * max(math.log2(alpha / epsilon), 0.0)
    return math.ceil(bits / (d_in + d_out))


def product_error(n: int, *, d_in: int, d_out: int, constant: float) -> float:
    """Return the epsilon of Lemma 4 for width `n`: ``d_in d_out exp(-n / (d_in C))``."""
    _positive(n=n, d_in=d_in, d_out=d_out, constant=constant)
    return d_in * d_out * math.exp(-n / (d_in * constant))


def relu_width(epsilon: float, *, d_in: int, d_out: int, constant: float) -> int:
    """Width n of a two-layer ReLU net that contains a linear map (Lemma 2).

    ``n >= d_in C log(2 d_in d_out / epsilon)`` (Pensia et al. 2020).
    """
    _positive(epsilon=epsilon, d_in=d_in, d_out=d_out, constant=constant)
    return _width(d_in, constant, 2 * d_in * d_out / epsilon)


def relu_error(n: int, *, d_in: int, d_out: int, constant: float) -> float:
    """Return the epsilon of Lemma 2 for width `n`: ``2 d_in d_out exp(-n / (d_in C))``."""
    return 2 * product_error(n, d_in=d_in, d_out=d_out, constant=constant)


def softmax_error(logit_error: float, *, d_in: int, alpha: float) -> float:
    """Bound how far attention's average of tokens moves with its logits (Lemmas 5 and 8).

    ``||p X - p' X|| <= sqrt(d_in) alpha (exp(2 e) - 1)`` for logits that move by at most
    e = `logit_error` and tokens of norm at most `alpha`; independent of the number of tokens.
    """
    _positive(d_in=d_in, alpha=alpha)
    checks.number("logit_error", logit_error, low=0)
    return math.sqrt(d_in) * alpha * math.expm1(min(2 * logit_error, 700.0))


def sharp_softmax_error(logit_error: float, *, alpha: float) -> float:
    """Bound what `softmax_error` bounds, sharper: ``2 tanh(e / 2) alpha``.

    Two softmax rows whose logits differ by at most e differ by at most ``2 tanh(e / 2)`` in the
    1-norm. So there is no ``sqrt(d_in)``, half the slope, and never more than ``2 alpha``.
    """
    _positive(alpha=alpha)
    return 2 * math.tanh(checks.number("logit_error", logit_error, low=0) / 2) * alpha


class MeasuredLaw(NamedTuple):
    """A law of widths that was measured, and where: it is not known to hold elsewhere.

    ``n_k = n_v = d margin (intercept + slope log(1 / epsilon) + log_d log(d) + log_heads log(H) +
    small / d^2)``: the form of Theorem 3, where C = `slope`, ``log_d = 3/2 C`` and ``log_heads =
    C``, with the powers that were measured and the price of the few units of a small d. With the
    margin it meets epsilon, in the mean over sources, at every measured point, and half of it at
    none (`python -m experiments width-law`).
    """

    intercept: float
    slope: float
    log_d: float
    log_heads: float
    small: float
    margin: float
    d: tuple[int, int]  # d_in = d_out
    num_heads: tuple[int, int]
    epsilon: tuple[float, float]
    norm: tuple[float, float]  # alpha / sqrt(d)

    def width(self, epsilon: float, *, d: int, num_heads: int) -> int:
        """Return the width ``n_k = n_v``."""
        logs = -self.slope * math.log(epsilon) + self.log_d * math.log(d)
        logs += self.log_heads * math.log(num_heads)
        units = self.intercept + logs + self.small / d**2
        return max(d, math.ceil(d * self.margin * units))


MEASURED = {
    "fitted": MeasuredLaw(
        intercept=-1.762,
        slope=1.655,
        log_d=1.521,
        log_heads=1.017,
        small=12.61,
        margin=1.23,
        d=(2, 128),
        num_heads=(1, 16),
        epsilon=(3e-4, 0.3),
        norm=(1.0, 1.0),
    )
}
"""Laws of the rules of construction, for random targets of spectral norm 1."""


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
    """Source widths at which attention is met within `epsilon` (Theorems 3 and 9).

    ``n_k >= d_in C log(8 H alpha^3 d_in^(3/2) / epsilon)`` and
    ``n_v >= d_in C log(2 H alpha d_in sqrt(d_out) / epsilon)``, with probability at least
    ``1 - epsilon``, for tokens of norm at most ``alpha >= max(sqrt(d_in), sqrt(d_out))`` and
    target projections of spectral norm at most 1.

    With ``constant='measured'`` it is the law of `MEASURED` for the rule `construction`, which was
    measured with ``n_k = n_v`` and speaks of the mean error over sources.

    Raises:
      ValueError: with 'measured', a rule, shape or error outside what was measured.

    Examples:
      >>> attention_widths(0.01, d_in=4, d_out=4, num_heads=2, alpha=2, constant=3)
      Widths(n_k=139, n_v=106)
    """
    _positive(epsilon=epsilon, d_in=d_in, d_out=d_out, num_heads=num_heads)
    _check_alpha(alpha, d_in, d_out)
    qk, vo = _attention_ratios(d_in, d_out, num_heads, alpha)
    if isinstance(constant, str):
        checks.choice("constant", constant, ("measured",))
        law = MEASURED[checks.choice("construction", construction, MEASURED)]
        _check_measured(law, epsilon, d_in, d_out, num_heads, alpha)
        n = law.width(epsilon, d=d_in, num_heads=num_heads)
        return Widths(n, n)
    _positive(constant=constant)
    return Widths(_width(d_in, constant, qk / epsilon), _width(d_in, constant, vo / epsilon))


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
    """Return the least epsilon for which `attention_widths` asks no more than `n_k` and `n_v`."""
    _positive(n_k=n_k, n_v=n_v, d_in=d_in, d_out=d_out, num_heads=num_heads, constant=constant)
    _check_alpha(alpha, d_in, d_out)
    qk, vo = _attention_ratios(d_in, d_out, num_heads, alpha)
    return max(
        qk * math.exp(-n_k / (d_in * constant)),
        vo * math.exp(-n_v / (d_in * constant)),
    )


def relu_network_width(
    epsilon: float, *, d_in: int, d_out: int, num_layers: int, constant: float
) -> int:
    """Width of the source of one layer of a ReLU net of L = `num_layers` layers (Theorem 10).

    ``n >= d_in C log(4 L d_in d_out / epsilon)``; the net is then met within
    `relu_network_error`, by a source of 2 L layers.
    """
    _positive(epsilon=epsilon, d_in=d_in, d_out=d_out, num_layers=num_layers, constant=constant)
    return _width(d_in, constant, 4 * num_layers * d_in * d_out / epsilon)


def relu_network_error(epsilon: float, *, alpha: float) -> float:
    """Return the error that Theorem 10 gives: ``exp(alpha epsilon / 2) - 1``, ``alpha >= 1``."""
    _positive(epsilon=epsilon)
    checks.number("alpha", alpha, low=1)
    return math.expm1(alpha * epsilon / 2)


def block_widths(
    epsilon: float, *, d_in: int, num_heads: int, num_layers: int, alpha: float, constant: float
) -> BlockWidths:
    """Source widths of a transformer block ``F(Attn(x) + x) + Attn(x) + x`` (Theorem 11).

    ``n_mha >= d C log(32 alpha^3 H d^(3/2) / epsilon)``,
    ``n_fc >= d C log(24 alpha L H d^(5/2) / epsilon)``; L = `num_layers` of F.
    """
    _positive(
        epsilon=epsilon, d_in=d_in, num_heads=num_heads, num_layers=num_layers, constant=constant
    )
    _check_alpha(alpha, d_in, d_in)
    mha = 32 * alpha**3 * num_heads * d_in**1.5
    fc = 24 * alpha * num_layers * num_heads * d_in**2.5
    return BlockWidths(_width(d_in, constant, mha / epsilon), _width(d_in, constant, fc / epsilon))


def transformer_budgets(
    epsilon: float, *, d_in: int, num_heads: int, num_blocks: int, alpha: float
) -> list[tuple[float, float]]:
    """Input bound and error budget of each block (Theorems 6 and 14): ``[(beta_b, eps_b)]``.

    ``beta_b = alpha (4 H sqrt(d))^(b-1)``. The last block may err by ``epsilon / 2``, each
    earlier one by half of the next one's budget over ``16 H sqrt(d) beta^2`` of the next block;
    block 1 by twice that, as it has no predecessor.
    """
    _positive(epsilon=epsilon, d_in=d_in, num_heads=num_heads, num_blocks=num_blocks)
    _check_alpha(alpha, d_in, d_in)
    growth = 4 * num_heads * math.sqrt(d_in)
    betas = [alpha * growth**b for b in range(num_blocks)]
    budgets = []
    for b in range(num_blocks):
        # B - b + 1 halvings for the paper's block b >= 2 and B - 1 for block 1.
        halvings = num_blocks - 1 if b == 0 else num_blocks - b
        later = math.prod(4 * growth * beta**2 for beta in betas[b + 1 :])
        budgets.append(epsilon / (2**halvings * later))
    return list(zip(betas, budgets, strict=True))


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
    """Source widths of each block of a transformer without normalisation (Theorems 6 and 14).

    `block_widths` with the budgets of `transformer_budgets`: alpha for the first block and
    ``2 beta_b`` for the later ones. With one block this is Theorem 11.
    """
    budgets = transformer_budgets(
        epsilon, d_in=d_in, num_heads=num_heads, num_blocks=num_blocks, alpha=alpha
    )
    return [
        block_widths(
            budget,
            d_in=d_in,
            num_heads=num_heads,
            num_layers=num_layers,
            alpha=beta if b == 0 else 2 * beta,
            constant=constant,
        )
        for b, (beta, budget) in enumerate(budgets)
    ]


def _attention_ratios(d_in: int, d_out: int, num_heads: int, alpha: float) -> tuple[float, float]:
    """Return what Theorem 9 divides by epsilon inside the logarithms, for keys and values."""
    qk = 8 * num_heads * alpha**3 * d_in**1.5
    vo = 2 * num_heads * alpha * d_in * math.sqrt(d_out)
    return qk, vo


def _width(d: int, constant: float, ratio: float) -> int:
    """Return the least width ``n >= d C log(ratio)``, at least one unit per coordinate."""
    return max(d, math.ceil(d * constant * math.log(ratio)))


def _check_alpha(alpha: float, d_in: int, d_out: int) -> None:
    checks.number("alpha", alpha, low=math.sqrt(max(d_in, d_out)) * (1 - 1e-6))


def _check_measured(
    law: MeasuredLaw, epsilon: float, d_in: int, d_out: int, num_heads: int, alpha: float
) -> None:
    """Refuse what lies outside of the range that a law was measured on."""
    if d_out != d_in:
        raise checks.fail("d_out", f"d_in = {d_in}, as measured", d_out)
    norm = alpha / math.sqrt(d_in)
    for name, value, (low, high) in (
        ("d_in", d_in, law.d),
        ("num_heads", num_heads, law.num_heads),
        ("epsilon", epsilon, law.epsilon),
        ("alpha / sqrt(d_in)", norm, law.norm),
    ):
        if not low * (1 - 1e-6) <= value <= high * (1 + 1e-6):
            raise checks.fail(name, f"from {low:g} to {high:g}, as measured", f"{value:g}")


def _positive(**values: float) -> None:
    for name, value in values.items():
        checks.number(name, value, low=0, open_low=True)
