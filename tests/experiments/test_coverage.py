"""Every printed interval covers the true number in 95 of 100 simulated experiments."""

import numpy as np
import pytest
from scipy import stats

from experiments import claims, curves, measure
from experiments.benchmarks.convolutions import interval
from experiments.law import crossings, regression

RNG = np.random.default_rng(5)
START = RNG.bit_generator.state


@pytest.fixture(autouse=True)
def numbers_from_the_start():
    """Draw the same numbers in whichever order tests run."""
    RNG.bit_generator.state = START


COUNT = 4000  # the share has a standard error of 0.0034


def covered(trials, truth):
    """Return the share of the intervals (low, high) that contain the truth."""
    low, high = np.array(list(trials)).T
    return float(np.mean((low <= truth) & (truth <= high)))


@pytest.mark.parametrize("count", [3, 5, 13])
def test_a_number_with_the_standard_error_of_few_values(count):
    draws = RNG.normal(1.0, 2.0, (COUNT, count))
    errors = draws.std(axis=1, ddof=1) / np.sqrt(count)
    rows = [
        claims.number("n", 0.0, mean, error, count - 1)
        for mean, error in zip(draws.mean(axis=1), errors, strict=True)
    ]
    assert 0.94 <= covered([(row["low"], row["high"]) for row in rows], 1.0) <= 0.96
    plain = covered(
        [(m - 1.96 * e, m + 1.96 * e) for m, e in zip(draws.mean(axis=1), errors, strict=True)], 1.0
    )
    assert plain < 0.94  # the normal distribution's 1.96


@pytest.mark.slow
def test_differences_over_pairs_of_seeds():
    def pair():
        seeds = RNG.normal(size=5)
        rows = [{"seed": s, "arm": 0, "loss": seeds[s] + RNG.normal()} for s in range(5)]
        rows += [{"seed": s, "arm": 1, "loss": seeds[s] + 0.7 + RNG.normal()} for s in range(5)]
        difference = measure.paired(rows, "arm", 1, 0)
        return difference["low"], difference["high"]

    # 1,500 trials: the share has a standard error of 0.006.
    assert 0.935 <= covered((pair() for _ in range(1500)), 0.7) <= 0.965


def test_means_over_seeds_of_accuracies():
    rows = [interval(list(values)) for values in RNG.normal(0.8, 0.05, (COUNT, 5))]
    limits = [(row["accuracy"] - row["half"], row["accuracy"] + row["half"]) for row in rows]
    assert 0.94 <= covered(limits, 0.8) <= 0.96


@pytest.mark.parametrize("of_target, of_source", [(1.0, 0.3), (0.3, 1.0)])
def test_means_over_targets_and_sources_that_are_crossed(of_target, of_source):
    """24 targets, each met from the same 24 sources; the plain standard error covers a third."""
    limits, plain = [], []
    for _ in range(COUNT):
        values = RNG.normal(0, of_target, (24, 1)) + RNG.normal(0, of_source, (1, 24))
        values = values + RNG.normal(0, 0.5, (24, 24))
        crossed, mean = measure.crossed_mean(values), float(values.mean())
        limits.append(claims.interval(mean, crossed["mean_se"], crossed["mean_free"]))
        plain.append(claims.interval(mean, float(values.std(ddof=1) / 24), 24**2 - 1))
    assert 0.94 <= covered(limits, 0.0) <= 0.965  # the freedom of one side, for the sum of two
    assert covered(plain, 0.0) < 0.5


WIDTHS = np.arange(4, 101, 8)


@pytest.mark.slow
def test_rates_of_the_curve_fitted_to_means():
    """As the fit assumes: deviations of equal variance from the curve."""
    limits: dict[str, list] = {"gamma": [], "delta": []}
    for _ in range(COUNT):
        fit = curves.exponential(WIDTHS, 0.8 * np.exp(-0.06 * WIDTHS) + RNG.normal(0, 0.01, 13))
        for name in limits:
            limits[name].append(claims.interval(fit[name], fit[f"{name}_se"], fit["free"]))
    for name, truth in (("gamma", 0.8), ("delta", 0.06)):
        assert 0.94 <= covered(limits[name], truth) <= 0.96, name


def test_rates_of_lines_through_logarithms():
    limits, slopes = [], []
    for _ in range(COUNT):
        mean = np.exp(-0.05 * WIDTHS[:5] + RNG.normal(0, 0.3, 5))
        line = curves.log_line(WIDTHS[:5], mean)
        limits.append(claims.interval(line["delta"], line["delta_se"], 3))
        slope = curves.slope(WIDTHS[:5], np.log(mean))
        slopes.append((slope["low"], slope["high"]))
    assert 0.94 <= covered(limits, 0.05) <= 0.96
    assert 0.94 <= covered(slopes, -0.05) <= 0.96


def test_the_line_through_logarithms_leaves_the_rounding_floor_out():
    mean = np.exp(-0.3 * WIDTHS) + 1e-8
    assert curves.exponential(WIDTHS, mean)["log_delta"] < 0.2
    assert curves.exponential(WIDTHS, mean, floor=1e-7)["log_delta"] == pytest.approx(0.3, abs=2e-3)


SHAPES = [(d, h) for d in (2, 4, 8, 16, 32, 64) for h in (1, 4)]


def law_rows(of_shape):
    """Draw widths n / d = 1 + 2 log(d H^0.5 / eps), whose deviations a shape's points share."""
    rows = []
    for d, h in SHAPES:
        shared = RNG.normal(0, of_shape)
        for eps in (0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003):
            units = 1 + 2 * np.log(d * h**0.5 / eps) + shared + RNG.normal(0, 0.2)
            rows.append({"d": d, "heads": h, "eps": eps, "width": d * units})
    return rows


@pytest.mark.slow
def test_powers_of_the_law_are_clustered_by_shape():
    """Twelve shapes, not 84 points."""
    limits: dict[str, list] = {"d": [], "heads": []}
    independent = []
    for _ in range(1000):
        rows = law_rows(0.5)
        fit = regression.free(rows)
        for name in limits:
            value, error = fit[f"power_of_{name}"], fit[f"power_of_{name}_se"]
            limits[name].append(claims.interval(value, error, fit[f"power_of_{name}_free"]))
        design = np.stack(
            [
                np.ones(len(rows)),
                *(np.log([row[n] for row in rows]) for n in ("eps", "d", "heads")),
            ],
            axis=1,
        )
        units = np.array([row["width"] / row["d"] for row in rows])
        alone = regression.clustered(design, units, range(len(rows)))
        error, _ = alone.error(np.array([0.0, 0.0, 1.0, 0.0]))
        independent.append(claims.interval(float(alone.beta[2]), error, len(rows) - 4))
    # 1,000 trials: the share has a standard error of 0.007.
    assert 0.93 <= covered(limits["d"], 1.0) <= 0.97
    assert 0.93 <= covered(limits["heads"], 0.5) <= 0.97
    assert covered(independent, 2.0) < 0.8


@pytest.mark.slow
def test_bits_per_unit_are_clustered_by_shape():
    limits = []
    for _ in range(400):
        rows = []
        for d, h in SHAPES:
            slope = 1 + RNG.normal(0, 0.05)
            for eps in (0.01, 0.003, 0.001, 0.0003):
                sums = 3 - slope * np.log2(eps) + RNG.normal(0, 0.05)
                units = sums
                for _ in range(30):  # units - log2(units) / 2 = sums
                    units = sums + np.log2(units) / 2
                rows.append({"d": d, "heads": h, "eps": eps, "width": d * units})
        law = regression.in_bits(rows)
        limits.append((law["low"], law["high"]))
    assert 0.92 <= covered(limits, 1.0) <= 0.97  # a standard error of 0.011


def test_a_power_of_heads_needs_several_numbers_of_heads():
    rows = [row for row in law_rows(0.5) if row["heads"] == 1]
    fit = regression.free(rows)
    assert "power_of_heads" not in fit and fit["power_of_d"] == pytest.approx(1, abs=0.5)


@pytest.mark.parametrize("sources", [8, 20])
@pytest.mark.parametrize("shared", [False, True])
def test_crossings_of_few_sources(sources, shared):
    """Sources that all widths share, or new ones per width; their errors deviate by a third."""
    widths = [4, 8, 12, 16, 20]
    curve = 2.0 * np.exp(-0.3 * np.array(widths))[:, None]
    limits = []
    for _ in range(COUNT):
        noise = RNG.lognormal(-0.045, 0.3, size=(1 if shared else 5, sources))
        crossing = crossings.with_interval(widths, curve * noise, 0.04)
        limits.append((crossing["low"], crossing["high"]))
    assert 0.93 <= covered(limits, np.log(50) / 0.3) <= 0.96


def test_student_and_scipy_agree():
    assert claims.interval(2.0, 0.5, 3) == pytest.approx(
        (2 - 0.5 * stats.t.ppf(0.975, 3), 2 + 0.5 * stats.t.ppf(0.975, 3))
    )
