"""The bounds against the formulas of the paper, typed in anew, and their inverses."""

import itertools
import math

import numpy as np
import pytest
from refusals import refusals

from slth_jax import theory

C = 2.5


def test_widths_are_the_printed_formulas():
    n_k, n_v = theory.attention_widths(0.01, d_in=4, d_out=9, num_heads=3, alpha=3.0, constant=C)
    assert n_k == math.ceil(4 * C * math.log(8 * 3 * 27 * 8 / 0.01))
    assert n_v == math.ceil(4 * C * math.log(2 * 3 * 3 * 4 * 3 / 0.01))
    assert theory.product_width(0.1, d_in=4, d_out=3, constant=C) == math.ceil(10 * math.log(120))
    assert theory.relu_width(0.1, d_in=4, d_out=3, constant=C) == math.ceil(10 * math.log(240))
    assert theory.relu_network_width(0.1, d_in=4, d_out=3, num_layers=2, constant=C) == math.ceil(
        10 * math.log(4 * 2 * 12 / 0.1)
    )
    block = theory.block_widths(0.1, d_in=4, num_heads=2, num_layers=1, alpha=2.0, constant=C)
    assert block == (
        math.ceil(10 * math.log(32 * 8 * 2 * 8 / 0.1)),
        math.ceil(10 * math.log(24 * 2 * 1 * 2 * 32 / 0.1)),
    )


def test_transformer_budgets_of_three_blocks():
    epsilon, h, d, alpha = 0.3, 2, 4, 2.0
    betas = [alpha, alpha * 16, alpha * 256]  # 4 H sqrt(d) = 16
    factor = 16 * h * 2
    want = [
        epsilon / (2**2 * factor * betas[1] ** 2 * factor * betas[2] ** 2),
        epsilon / (2**2 * factor * betas[2] ** 2),
        epsilon / 2,
    ]
    budgets = theory.transformer_budgets(epsilon, d_in=d, num_heads=h, num_blocks=3, alpha=alpha)
    np.testing.assert_allclose([b for b, _ in budgets], betas)
    np.testing.assert_allclose([e for _, e in budgets], want)
    widths = theory.transformer_widths(
        epsilon, d_in=d, num_heads=h, num_layers=1, num_blocks=3, alpha=alpha, constant=C
    )
    later = theory.block_widths(
        epsilon / 2, d_in=d, num_heads=h, num_layers=1, alpha=2 * betas[2], constant=C
    )
    assert widths[2] == later and widths[0].n_mha > widths[2].n_mha


def test_one_block_is_theorem_11():
    options = {"d_in": 2, "num_heads": 1, "num_layers": 1, "alpha": 2.0, "constant": C}
    assert theory.transformer_widths(0.1, num_blocks=1, **options) == [
        theory.block_widths(0.1, **options)
    ]


@pytest.mark.parametrize("epsilon", [0.5, 1e-3, 1e-8])
def test_errors_invert_widths(epsilon):
    options = {"d_in": 2, "d_out": 3, "constant": C}
    slack = math.exp(-1 / (2 * C))  # a width is rounded up by less than one unit
    n = theory.product_width(epsilon, **options)
    assert epsilon * slack <= theory.product_error(n, **options) <= epsilon
    n = theory.relu_width(epsilon, **options)
    assert epsilon * slack <= theory.relu_error(n, **options) <= epsilon
    options |= {"num_heads": 2, "alpha": 2.0}
    n_k, n_v = theory.attention_widths(epsilon, **options)
    assert epsilon * slack <= theory.attention_error(n_k, n_v, **options) <= epsilon
    assert theory.relu_network_error(epsilon, alpha=2.0) == pytest.approx(math.expm1(epsilon))


def test_softmax_bounds_hold_and_the_sharper_is_below():
    rng = np.random.default_rng(0)
    alpha, t, d = 1.7, 6, 3
    for _ in range(2000):
        x = rng.normal(size=(t, d))
        x *= (alpha * rng.random(t) / np.linalg.norm(x, axis=1))[:, None]
        e = rng.exponential()
        logits = rng.normal(size=t) * 3
        moved = logits + e * rng.choice([-1.0, 1.0], t)
        p, q = (np.exp(z - z.max()) for z in (logits, moved))
        distance = np.linalg.norm(p / p.sum() @ x - q / q.sum() @ x)
        sharp = theory.sharp_softmax_error(e, alpha=alpha)
        assert distance <= sharp * (1 + 1e-12)
        assert sharp <= theory.softmax_error(e, d_in=d, alpha=alpha)
    # Two tokens at opposite ends with opposite shifts reach the sharper bound.
    e = 0.8
    p = 1 / (1 + math.exp(e))
    assert 2 * alpha * abs(1 - 2 * p) == pytest.approx(theory.sharp_softmax_error(e, alpha=alpha))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"epsilon": 0.0}, r"^epsilon must be a number in \(0, inf\), got 0"),
        ({"alpha": 0.5}, r"^alpha must be a number in \[1.73"),
        ({"constant": -1.0}, r"^constant must be a number in \(0, inf\), got -1"),
        ({"d_in": float("nan")}, r"^d_in must be a number in \(0, inf\), got nan"),
    ],
)
def test_bad_arguments_are_named(options, message):
    good = {"epsilon": 0.1, "d_in": 2, "d_out": 3, "num_heads": 1, "alpha": 2.0, "constant": C}
    good.update(options)
    with refusals(message):
        theory.attention_widths(good.pop("epsilon"), **good)


def test_the_measured_law_is_what_it_says_and_refuses_what_was_not_measured():
    law = theory.MEASURED["fitted"]
    d, heads, epsilon = 8, 2, 0.02
    units = law.intercept + law.small / d**2 - law.slope * math.log(epsilon)
    units += law.log_d * math.log(d) + law.log_heads * math.log(heads)
    shape = {"d_in": d, "d_out": d, "num_heads": heads, "alpha": math.sqrt(d)}
    widths = theory.attention_widths(epsilon, constant="measured", **shape)
    assert widths == (math.ceil(d * law.margin * units),) * 2
    for change, message in (
        (
            {"d_in": 256, "d_out": 256, "alpha": 16.0},
            r"^d_in and num_heads must be in the measured",
        ),
        (
            {"num_heads": 64},
            r"nearest measured shape is d_in = d_out = 8, num_heads = 16\), got 8 and",
        ),
        (
            {"d_out": 6},
            r"^d_out must be within 1 or a factor 1.25 of d_in = 8 \(the nearest .*, got 6",
        ),
        ({"alpha": 30.0}, r"^alpha must be at most 1.1 sqrt\(d\) = 3.111 \(the nearest .* got 30"),
        ({"construction": "proof"}, r"^construction must be one of 'fitted'"),
        ({"constant": "guessed"}, r"^constant must be one of 'measured', got 'guessed'"),
    ):
        with refusals(message):
            theory.attention_widths(epsilon, **{**shape, "constant": "measured", **change})
    with refusals(r"^epsilon must be from .* as measured, got 1e-09"):
        theory.attention_widths(1e-9, constant="measured", **shape)


def test_the_measured_law_is_used_near_the_measured_shapes_alone():
    law = theory.MEASURED["fitted"]

    def width(epsilon=0.01, **options):
        shape = {"d_in": 8, "d_out": 8, "num_heads": 1, **options}
        alpha = shape.pop("alpha", math.sqrt(max(shape["d_in"], shape["d_out"])))
        return theory.attention_widths(epsilon, alpha=alpha, constant="measured", **shape).n_k

    assert all(law.covers(*shape) for shape in law.shapes)
    assert width(alpha=1.0001 * math.sqrt(8)) == width(0.01 / 1.0001**3)
    assert width(alpha=1.1 * math.sqrt(8)) == width(0.01 / 1.1**3) > width()
    for d_in, d_out in ((9, 8), (12, 10), (8, 9), (3, 2)):  # biases; 1.2 times as many inputs
        d = max(d_in, d_out)
        assert width(d_in=d_in, d_out=d_out) == width(d_in=d, d_out=d)
    # Inside the ranges of d and of H, but no such pair was near to a measured one.
    for d, heads in ((128, 16), (2, 16), (64, 8)):
        with refusals(rf"in the measured region \(the nearest .*, got {d} and {heads}"):
            width(d_in=d, d_out=d, num_heads=heads)


def test_counting_needs_a_bit_for_each_halving():
    at = [theory.counting_width(e, d_in=16, d_out=16, alpha=4.0) for e in (0.25, 0.125)]
    assert at == [8 * 4, 8 * 5]
    assert theory.counting_width(8.0, d_in=16, d_out=16, alpha=4.0) == 0


def test_counting_depends_on_heads_and_on_the_masks_that_are_free():
    def count(heads, masks):
        shape = {"d_in": 16, "d_out": 8, "alpha": 4.0}
        return theory.counting_width(2.0**-10, num_heads=heads, masks=masks, **shape)

    bits = {"any": 16 + 8, "assigned": 16 + 3, "fixed": 16}
    for heads, (masks, per_unit) in itertools.product((1, 4), bits.items()):
        precision = 12 + math.log2(heads)
        assert count(heads, masks) == math.ceil(16 * 8 * precision / heads / per_unit)
    with refusals(r"^masks must be one of 'any', 'assigned', 'fixed', got 'all'"):
        count(1, "all")


def test_deep_transformers_and_extreme_numbers_stay_within_floats():
    shape = {"d_in": 768, "num_heads": 12, "num_blocks": 12, "alpha": 28.0}
    widths = theory.transformer_widths(0.1, num_layers=2, constant=C, **shape)
    # The last block by hand, with budget epsilon / 2 and twice its bound on the input.
    beta = 28.0 * (4 * 12 * math.sqrt(768)) ** 11
    last = theory.block_widths(
        0.05, d_in=768, num_heads=12, num_layers=2, alpha=2 * beta, constant=C
    )
    assert widths[-1] == last
    assert all(a.n_mha > b.n_mha for a, b in itertools.pairwise(widths))
    with refusals(r"^num_blocks must be so small that bounds and budgets .* got 12"):
        theory.transformer_budgets(0.1, **shape)
    options = {"d_in": 2, "d_out": 2, "num_heads": 1}
    n_k, _ = theory.attention_widths(1e-300, alpha=1e300, constant=1.0, **options)
    assert n_k == math.ceil(2 * (math.log(8) + 1200 * math.log(10) + 1.5 * math.log(2)))
    assert theory.attention_error(1, 1, alpha=1e300, constant=1.0, **options) == math.inf
    assert theory.relu_network_error(1e300, alpha=2.0) == math.inf
    assert theory.softmax_error(1000.0, d_in=2, alpha=1.0) == math.inf
