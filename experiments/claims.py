"""What the paper says beside what came out here: a claim is a row of `summary.json`.

Every claim has `what` is compared, the `paper`'s number or words, the number `here` with the
interval from `low` to `high`, and a `verdict`: 'agrees', or where not: 'lower' or 'higher' than the
paper's number, 'differs' from its words, 'open' where the interval does not tell.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

AGREES = "agrees"
# Half the width of a 95 % interval in standard errors.
STANDARD_ERRORS = 1.96

Claim = dict[str, Any]


def number(what: str, paper: float, here: float, se: float) -> Claim:
    """Compare a number of the paper with ``here ± 1.96 se``; it agrees where it lies inside."""
    low, high = here - STANDARD_ERRORS * se, here + STANDARD_ERRORS * se
    verdict = "lower" if high < paper else "higher" if low > paper else AGREES
    return _claim(what, paper, here, verdict, low, high)


def statement(
    what: str,
    paper: str,
    here: Any,
    holds: bool,
    *,
    low: float | None = None,
    high: float | None = None,
) -> Claim:
    """Set a statement of the paper beside what was measured, and whether it holds here."""
    return _claim(what, paper, here, AGREES if holds else "differs", low, high)


def below_zero(what: str, paper: str, paired: Mapping[str, Any]) -> Claim:
    """Compare a difference over seeds (`measure.paired`) that the paper says is negative."""
    low, high = paired.get("low", -math.inf), paired.get("high", math.inf)
    verdict = AGREES if high < 0 else "differs" if low > 0 else "open"
    return _claim(what, paper, paired["difference"], verdict, low, high)


def in_order(rows: Sequence[Mapping[str, Any]], outer: str, inner: str) -> tuple[int, int]:
    """Count where `mean` grows with `outer`: (pairs that do, pairs), at equal values of `inner`."""
    values = sorted({row[outer] for row in rows})
    mean = {(row[outer], row[inner]): row["mean"] for row in rows}
    pairs = [
        mean[below, at] < mean[above, at]
        for below, above in itertools.pairwise(values)
        for at in {row[inner] for row in rows}
    ]
    return sum(pairs), len(pairs)


def _claim(
    what: str, paper: Any, here: Any, verdict: str, low: float | None, high: float | None
) -> Claim:
    told = {"what": what, "paper": paper, "here": here, "low": low, "high": high}
    return {name: value for name, value in told.items() if value is not None} | {"verdict": verdict}
