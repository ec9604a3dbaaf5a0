"""Compare the paper's statements and numbers with measurements, for `summary.json`.

A comparison is called a claim and has these fields: `what` names the compared quantity; `paper` is
the paper's number or statement; `here` is the measured value, and `low` and `high` are the ends of
its interval; `tolerance` is the condition under which paper and measurement agree; `verdict` is the
result. The verdict is 'agrees'; 'lower' or 'higher' if the whole interval lies below or above the
paper's number; 'differs' if the measurement contradicts the paper's statement; or 'open' if some
values in the interval agree with the paper and some contradict it.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from scipy import stats

AGREES = "agrees"

Claim = dict[str, Any]


def interval(measured: float, se: float, free: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a measured number, from Student's t.

    Args:
      measured: the number. se: its standard error.
      free: the degrees of freedom of the standard error.
    """
    half = float(stats.t.ppf(0.975, free)) * se
    return measured - half, measured + half


def number(what: str, paper: float, measured: float, se: float, free: int) -> Claim:
    """Compare a number of the paper with a measured number's 95 % interval (see `interval`)."""
    low, high = interval(measured, se, free)
    return inside(what, paper, measured, low, high, "inside the 95 % interval")


def inside(
    what: str, paper: float, measured: float, low: float, high: float, tolerance: str
) -> Claim:
    """Compare a number of the paper with the range `low` to `high` of a measured number."""
    verdict = "lower" if high < paper else "higher" if low > paper else AGREES
    return _claim(what, paper, measured, verdict, tolerance=tolerance, low=low, high=high)


def statement(
    what: str, paper: str, measured: Any, holds: bool, tolerance: str, **more: float
) -> Claim:
    """Compare a statement of the paper with a measurement.

    `more` may contain `low` and `high`, the ends of the measurement's interval.
    """
    return _claim(
        what, paper, measured, AGREES if holds else "differs", tolerance=tolerance, **more
    )


def below_zero(what: str, paper: str, paired: Mapping[str, Any]) -> Claim:
    """Compare the paper's statement that a difference is negative with the measured difference.

    `paired` is the measured difference, as a dict that `measure.paired` returned.
    """
    low, high = paired.get("low", -math.inf), paired.get("high", math.inf)
    verdict = AGREES if high < 0 else "differs" if low > 0 else "open"
    limits = {"low": low, "high": high} if "low" in paired else {}
    return _claim(
        what, paper, paired["difference"], verdict, tolerance="95 % interval below 0", **limits
    )


def ordered(
    what: str, rows: Sequence[Mapping[str, Any]], outer: str, inner: str, *, grows: bool
) -> list[Claim]:
    """Check the paper's statement that the mean error grows (or falls) as `outer` increases.

    The mean errors at neighbouring values of the column `outer` are compared, at each value of the
    column `inner`. The returned list is empty if `outer` has a single value.
    """
    larger, pairs = pairs_in_order(rows, outer, inner)
    if not pairs:
        return []
    agree = larger if grows else pairs - larger
    return [statement(what, "all", f"{agree} of {pairs}", agree == pairs, "all pairs")]


def pairs_in_order(rows: Sequence[Mapping[str, Any]], outer: str, inner: str) -> tuple[int, int]:
    """Return the number of pairs of rows in which the mean grows, and the number of all pairs.

    The rows of a pair have neighbouring values of the column `outer` and the same value of the
    column `inner`.
    """
    values = sorted({row[outer] for row in rows})
    mean = {(row[outer], row[inner]): row["mean"] for row in rows}
    pairs = [
        mean[below, at] < mean[above, at]
        for below, above in itertools.pairwise(values)
        for at in {row[inner] for row in rows}
    ]
    return sum(pairs), len(pairs)


def _claim(what: str, paper: Any, measured: Any, verdict: str, **more: Any) -> Claim:
    return {"what": what, "paper": paper, "here": measured, **more, "verdict": verdict}
