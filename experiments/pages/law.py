"""Generate the parts of docs/law.md that contain numbers."""

import math
from typing import Any

import numpy as np

from experiments.pages.blocks import g, interval, pick, pm, read, table, wrapped

MAIN = "spectral, fitted"


def _law(rule: str = MAIN) -> dict[str, Any]:
    return read("width_law")["laws"][rule]


def law_bits() -> str:
    """Return the law's fits: a paragraph on all shapes together, and a table of single shapes.

    The fitted slopes are numbers of hidden units per bit of precision.
    """
    bits = _law()["bits"]
    widths = [
        row
        for row in read("width_law")["widths"]
        if f"{row['target']}, {row['construction']}" == MAIN
    ]
    text = (
        f"One slope was fitted to all shapes: {bits['slope']:.2f} "
        f"{interval(bits['low'], bits['high'])} units per bit (95 % interval, clustered by shape). "
        f"The median of the slopes that were fitted to single shapes is "
        f"{bits['median_slope']:.2f}. If the slope is set to 1, the root mean square residual is "
        f"{bits['rms']:.2f} units. The fit uses {bits['count']} widths of {len(bits['shapes'])} "
        f"shapes:"
    )
    rows = [
        (
            s["d"], s["heads"], f"{s['c']:.1f}", f"{s['slope']:.2f}", f"{s['plain_slope']:.2f}",
            f"{_slope([w for w in widths if (w['d'], w['heads']) == (s['d'], s['heads'])]):.2f}",
            f"{1 / (math.log(2) * (1 + math.log2(s['d']) / s['d'])):.2f}",
        )
        for s in bits["shapes"]
    ]  # fmt: skip
    names = (
        "d", "H", "c(d, H)", "slope in bits", "slope in log(1 / eps)",
        "slope in log(1 / eps), all errors", "least slope in log(1 / eps) in the worst case, H = 1",
    )  # fmt: skip
    coarse = (
        "At d = 64 and d = 128 the widths were measured in steps of at least four units per input\n"
        "coordinate, so the constants c(64, 1) and c(128, 1) are rough."
    )
    return f"{wrapped(text)}\n\n{table(names, rows)}\n\n{coarse}"


def _slope(widths: list[dict[str, Any]]) -> float:
    """Return the slope of the line in log(1 / eps) that is fitted to the least widths n / d."""
    x = [-math.log(row["eps"]) for row in widths]
    return float(np.polyfit(x, [row["width"] / row["d"] for row in widths], 1)[0])


def law_forms() -> str:
    """Return the table of formulas for n / d, fitted to all errors: slope, residual and R^2."""
    law = _law()
    lines = {line["form"]: line for line in (law["line"], *law["rivals"])}
    notes = {"H d^(3/2) / eps": ", the paper's", "d^(3/2) / eps": ", without H"}
    rows = [
        (
            f"log({form}){notes.get(form, '')}",
            pm(line["slope"], line["slope_se"]),
            f"{line['rms']:.1f}",
            f"{line['r2']:.2f}",
        )
        for form, line in lines.items()
    ]
    for name, label in (
        ("free", "each power free"),
        ("measured", "each power free, and a term in 1 / d^2"),
    ):
        fit = law[name]
        rows.append(
            (label, pm(fit["slope"], fit["slope_se"]), f"{fit['rms']:.2f}", f"{fit['r2']:.3f}")
        )
    fit = law["measured"]
    formula = (
        f"    n / d = {fit['intercept']:.2f} + {fit['slope']:.2f} log(1 / epsilon) + "
        f"{fit['d']:.2f} log d + {fit['heads']:.2f} log H + {fit['small']:.1f} / d^2"
    )
    names = ("form", "slope", "rms residual", "R^2")
    counted = f"{law['count']} widths of the default rule, spectral targets:"
    return f"{counted}\n\n{table(names, rows)}\n\n{formula}"


def law_powers() -> str:
    """Return the paragraph on the fitted powers of d and H, and on the fit of the rule 'proof'."""
    claims = read("width_law")["claims"]
    d, heads = (
        next(c for c in claims if f"power of {name}" in c["what"]) for name in ("d", "heads")
    )
    proof = _law("spectral, proof")["measured"]
    return wrapped(
        f"If the powers of d and H in the logarithm are fitted, the power of d is {d['here']:.2f} "
        f"{interval(d['low'], d['high'])} and the power of H is {heads['here']:.2f} "
        f"{interval(heads['low'], heads['high'])}. For the rule `proof`, the fit of the last "
        f"form in the table has R^2 {proof['r2']:.2f} and slope {proof['slope']:.2f}."
    )


def bend() -> str:
    """Return the paragraph on the share of sources for which a target value is out of reach."""
    rows = read("hidden_dim")["bend"]
    parts = [row for row in rows if row["beyond"] > 0]
    last = parts[-1]
    after = rows[rows.index(last) + 1]
    at = {row["width"]: row for row in rows}
    inside = "; ".join(
        f"{100 * at[n]['beyond']:.0f} % at n = {n}" for n in sorted(at) if n in (20, 36)
    )
    return wrapped(
        f"A source misses a target value if the value is larger than the sum of all samples with "
        f"its sign. In figure 4 (trained target) the mean error is nearly the share of sources "
        f"that miss a value, multiplied by the mean error of these sources (about "
        f"{g(parts[0]['mean_beyond'], 1)} to {g(last['mean_beyond'], 1)}). The share is {inside}; "
        f"{100 * last['beyond']:.0f} % at "
        f"n = {last['width']}. At n = {after['width']} every source reaches all values, and the "
        f"mean error falls from {g(last['mean'])} to {g(after['mean'])}."
    )


def law_ratios() -> str:
    """Return the table of ratios of the width of the rule 'fitted' to the width of 'proof'."""
    errors = (0.1, 0.01, 0.001)
    wide = read("law_theory")
    rows = []
    for target, name, sizes in (
        ("theory", "width_law", (2,)),
        ("theory", "law_theory", (4, 8, 16, 32)),
        ("spectral", "width_law", (2, 4, 8, 16, 32)),
    ):
        for d in sizes:
            cells = []
            for eps in errors:
                ratios = [
                    row["ratio"]
                    for row in read(name)["ratios"]
                    if (row["target"], row["d"], row["heads"], row["eps"]) == (target, d, 1, eps)
                ]
                if ratios:
                    cells.append(f"{ratios[0]:.2f}")
                else:
                    units = pick(wide["widths"], construction="fitted", d=d, eps=eps)["width"] / d
                    cells.append(f"< {units / _most_units(wide):.2f}")
            rows.append((target, d, *cells))
    return table(("target", "d", *(f"eps {eps:g}" for eps in errors)), rows)


def _most_units(result: dict[str, Any]) -> float:
    return max(row["width"] / row["d"] for row in result["rows"])


def law_theory() -> str:
    """Return the table of hidden units per input coordinate that 'proof' and 'fitted' need.

    The targets are drawn from the theory's distribution.
    """
    result = read("law_theory")
    rows = []
    for d in (4, 8, 16, 32):
        cells = []
        for eps in (1.0, 0.1, 0.01, 0.001):
            cells.append(" / ".join(_units(result, rule, d, eps) for rule in ("proof", "fitted")))
        rows.append((d, *cells))
    return table(("d", "eps 1", "0.1", "0.01", "0.001"), rows)


def _units(result: dict[str, Any], rule: str, d: int, eps: float) -> str:
    """Return the least width n / d for a given error.

    If the least width is above or below all measured widths, return '> LARGEST' or '< SMALLEST'.
    """
    for row in result["widths"]:
        if (row["construction"], row["d"], row["eps"]) == (rule, d, eps):
            return f"{row['width'] / d:.1f}"
    means = {
        row["width"] / d: row["mean"]
        for row in result["rows"]
        if (row["construction"], row["d"]) == (rule, d)
    }
    least, most = min(means), max(means)
    return f"> {most:g}" if means[most] > eps else f"< {least:g}"


def law_failures() -> str:
    """Return the paragraph on matrix entries with too large errors, for each rule and target."""

    def counts(name: str, target: str, rule: str) -> dict[str, Any]:
        return pick(read(name)["failures"], target=target, construction=rule, level=1.0)

    proof, fitted = (counts("width_law", "theory", rule) for rule in ("proof", "fitted"))
    small, best = (counts("width_law", "spectral", rule) for rule in ("proof", "fitted"))
    return wrapped(
        f"Which entries of the merged matrices have large errors? Tickets with an output error "
        f"between 1/3 and 3 were examined. An entry has a large error if its error is larger than "
        f"1 / d. An entry is out of reach if its target value is larger than the sum of all samples with "
        f"the sign of this value. For theory targets "
        f"and the rule `proof`, {proof['beyond']} of {proof['failed']} entries with large errors "
        f"are out of reach; for {proof['beyond_of_small_samples']} "
        f"of these entries, this sum is less than half of its median over all entries. With `fitted`, "
        f"{fitted['beyond']} of {fitted['failed']} entries with large errors are out of reach. For "
        f"spectral targets, {_share(small)} of the entries with large errors are out of reach with "
        f"`proof`, and {_share(best)} with `fitted`."
    )


def _share(counts: dict[str, Any]) -> str:
    return f"{g(100 * counts['beyond'] / counts['failed'])} %"


def law_check() -> str:
    """Return the paragraph that checks the law at points that were not used to fit it."""
    check = read("law_check")
    count = len(check["points"])
    return wrapped(
        f"`python -m experiments.benchmarks.law_check` measures {count} points (d, H, epsilon) "
        f"whose d was not used to fit the law, with {check['seeds']} new sources at each point. "
        f"The mean error is at most epsilon at {check['met']} of {count} points if the width is "
        f"the width that the law states, and at {check['half_met']} points at half of this width "
        f"(`experiments/benchmarks/results/law_check.json`)."
    )
