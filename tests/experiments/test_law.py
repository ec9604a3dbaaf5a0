"""The law of widths: crossings, regressions and trials against closed forms and NumPy."""

import itertools

import jax
import numpy as np
import pytest
from refusals import refusals

from experiments.law import crossings, regression, trial, width_law
from slth_jax import attention, construction, initializers

WIDTHS = np.array([4, 8, 12, 16, 20])


def test_a_crossing_of_an_exponential_is_the_closed_form():
    errors = 2.0 * np.exp(-0.3 * WIDTHS)
    for level in (0.4, 0.1, 0.01):
        assert crossings.crossing(WIDTHS, errors, level) == pytest.approx(np.log(2 / level) / 0.3)
    assert np.isnan(crossings.crossing(WIDTHS, errors, 3.0))  # met at the smallest width already
    assert np.isnan(crossings.crossing(WIDTHS, errors, 1e-4))  # not at the largest
    bumpy = [1.0, 0.05, 0.2, 0.01, 0.001]  # the last time that it is crossed counts
    assert 12 < crossings.crossing(WIDTHS, bumpy, 0.1) < 16


def test_the_interval_holds_the_crossing_and_narrows_with_the_sources():
    rng = np.random.default_rng(1)
    crossing = {}
    for sources in (10, 160):
        noise = rng.lognormal(-0.5 * 0.8**2, 0.8, size=(5, sources))
        measured = 2.0 * np.exp(-0.3 * WIDTHS)[:, None] * noise
        crossing[sources] = crossings.with_interval(WIDTHS, measured, 0.05)
        assert crossing[sources]["low"] <= crossing[sources]["width"] <= crossing[sources]["high"]
    few, many = (crossing[n]["high"] - crossing[n]["low"] for n in (10, 160))
    assert many < 0.75 * few
    assert crossing[160]["width"] == pytest.approx(np.log(2 / 0.05) / 0.3, abs=1.0)
    open_end = crossings.with_interval(WIDTHS[:3], measured[:3], 0.05)  # the end is too near
    assert np.isnan(open_end["high"])


def _rows(law):
    points = itertools.product((2, 4, 8, 16), (1, 4), (1.0, 0.1, 0.01))
    return [{"d": d, "heads": h, "eps": e, "width": d * law(d, h, e)} for d, h, e in points]


def test_the_regression_finds_the_law_and_its_powers():
    rows = _rows(lambda d, h, e: 0.7 + 1.4 * np.log(h * d**1.5 / e))
    line = regression.line(rows, "H d^(3/2) / eps")
    assert (line["intercept"], line["slope"]) == pytest.approx((0.7, 1.4))
    assert line["rms"] < 1e-9 < regression.line(rows, "1 / eps")["rms"]
    assert max(map(abs, line["residual_by_d"].values())) < 1e-9
    free = regression.free(_rows(lambda d, h, e: 2 + 1.5 * np.log(h**0.5 * d**2 / e)))
    assert (free["power_of_d"], free["power_of_heads"]) == pytest.approx((2.0, 0.5))
    small = _rows(lambda d, h, e: 3 + 1.5 * np.log(h * d**1.5 / e) + 8 / d**2)
    small[0]["width"] *= 1.2
    law = regression.free(small, small=True)
    assert 1.0 < law["high"] < 1.2 and law["low"] < 1.0
    law = regression.free(small[1:], small=True)
    names = ("intercept", "slope", "d", "heads", "small", "low", "high")
    assert [law[name] for name in names] == pytest.approx([3, 1.5, 2.25, 1.5, 8, 1, 1])


def test_the_law_in_bits_recovers_its_constants_and_clusters_by_shape():
    """Widths of n / d = log2(1 / eps) + log2(n / d) / 2 + c: slope 1, and the constants."""
    rows = []
    shapes = {(2, 1): 0.5, (4, 1): 1.5, (8, 1): 2.0, (8, 4): 3.0}
    for (d, h), c in shapes.items():
        for eps in (0.1, 0.01, 0.003, 0.001):
            units = 10.0
            for _ in range(60):
                units = np.log2(1 / eps) + np.log2(units) / 2 + c
            rows.append({"d": d, "heads": h, "eps": eps, "width": d * units})
    law = regression.in_bits(rows)
    assert law["slope"] == pytest.approx(1) and law["count"] == 12  # eps = 0.1 is left out
    assert {(s["d"], s["heads"]): s["c"] for s in law["shapes"]} == pytest.approx(shapes)
    assert law["rms"] < 1e-9 and law["high"] - law["low"] < 1e-6
    for row in rows:  # one shape grows with another slope
        row["width"] *= 1 + 0.2 * (row["d"] == 2) * np.log10(0.1 / row["eps"])
    tilted = regression.in_bits(rows)
    assert tilted["low"] < tilted["median_slope"] < tilted["slope"] < tilted["largest_slope"]
    assert tilted["high"] - tilted["low"] > 0.1
    assert regression.in_bits(rows[:8]) == {}


@pytest.mark.slow
def test_failing_entries_are_counted_as_numpy_does():
    d, n = 3, 9
    of_target, of_source = jax.random.split(jax.random.key(5))
    target = trial.drawn_target(of_target, num_heads=1, d=d)
    source = initializers.theory_attention(of_source, num_heads=1, d_in=d, d_out=d, n_k=n, n_v=n)
    masks = construction.prune_attention(source, target, construction="proof")
    x = trial.inputs(of_target, sequences=2, tokens=4, d=d)
    np.testing.assert_allclose(np.linalg.norm(x, axis=-1), np.sqrt(d), rtol=1e-6)
    measured = trial._measure(source, masks, target, x)
    reached = attention.merge(construction.apply_masks(source, masks))
    merged = attention.merge(target)
    failed, beyond = np.zeros((2, len(trial.LEVELS)), int)
    for which, left, right in (
        ("w_qk", source.w_q[0] / np.sqrt(n), (source.w_k * masks.w_k)[0].T),
        ("w_vo", source.w_o[0].T, (source.w_v * masks.w_v)[0].T),
    ):
        value, ticket = (np.asarray(getattr(of, which)[0], np.float64) for of in (merged, reached))
        if which == "w_vo":
            value, ticket = value.T, ticket.T
        for i, j in itertools.product(range(d), range(d)):
            samples = np.asarray(left)[i] * np.asarray(right)[:, j]
            most, least = samples[samples > 0].sum(), samples[samples < 0].sum()
            bad = abs(value[i, j] - ticket[i, j]) * d > np.array(trial.LEVELS)
            failed += bad
            beyond += bad & (not least <= value[i, j] <= most)
    assert failed[-1] > 0 and beyond.any()  # narrow enough that there is something to count
    np.testing.assert_array_equal(measured["failed"], failed)
    np.testing.assert_array_equal(measured["beyond"], beyond)
    assert (np.asarray(measured["small"]) <= beyond).all() and int(measured["entries"]) == 2 * d * d


def test_targets_have_spectral_norm_one():
    target = trial.random_target(jax.random.key(0), num_heads=2, d=8)
    assert target.w_q.shape == (2, 8, 4) and target.w_o.shape == (2, 4, 8)
    for weights in target:
        np.testing.assert_allclose(np.linalg.norm(weights, 2, axis=(-2, -1)), 1, rtol=1e-5)


def test_shapes_are_read_or_refused():
    assert width_law._sizes("8x4") == (8, 4)
    with refusals(r"^shapes must be of the form DxH"):
        width_law.Config(shapes=("8",))


def test_shares_count_the_sources_within_an_error():
    config = width_law.Config(shapes=("2x1", "2x4"), constructions=("fitted", "proof"))
    first = {"target": "spectral", "construction": "fitted", "d": 2, "heads": 1, "units": 3.0}
    errors = (0.5, 0.05, 0.005, 0.2)
    rows = [{**first, "error": error} for error in errors]
    rows += [{**first, "heads": 4, "error": 0.0}, {**first, "construction": "proof", "error": 0.0}]
    share = {
        (row["d"], row["units"], row["eps"]): row["share"] for row in width_law.shares(config, rows)
    }
    assert share == {(2, 3.0, 0.1): 0.5, (2, 3.0, 0.01): 0.25}
