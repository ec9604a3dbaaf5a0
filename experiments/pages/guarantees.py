"""Generate the parts of docs/guarantee.md that contain numbers."""

import math

from experiments.pages.blocks import g, read, table, wrapped


def bounds() -> str:
    """Return the table of error bounds, with a row for each number of blocks.

    The table contains the median ratio of the bound to the measured error, and the share of vacuous
    bounds. A bound is vacuous if it is not below the bound on the norm of the target's outputs.
    """
    result = read("bounds_paper")
    rows = [
        (
            row["num_blocks"], g(row["ratio"]),
            f"{100 * row['vacuous']:.0f} %", g(row["ratio_on"], 3 if row["ratio_on"] < 2 else 2),
            f"{100 * row['vacuous_on']:.0f} %",
        )
        for row in result["by_depth"]
    ]  # fmt: skip
    names = ("blocks", "all inputs", "vacuous", "given input", "vacuous")
    note = (
        f"{result['trials']:,} tickets were measured at {len(result['by_depth'])} depths. Of "
        f"{result['comparisons']:,} measured errors {result['violations']} are above the bound for all "
        f"inputs and {result['violations_on']} are above the bound for the given input. The bound for the "
        f"given input is above the bound for all inputs in {result['on_inputs_above_all']} cases. "
        f"For each of these two bounds, the table contains the median ratio of the bound to the "
        f"measured error, and the share of tickets for which the bound is vacuous:"
    )
    return f"{wrapped(note)}\n\n{table(names, rows)}"


def bound_slopes() -> str:
    """Return the paragraph on how errors and bounds grow with depth, input norm and input length."""
    result = read("bounds_paper")
    fit = result["fit"]
    kinds = ("error", "bound_on", "bound")
    blocks = [math.exp(fit[kind]["block"]["slope"]) for kind in kinds]
    deepest = max(fit["error"]["by_depth"], key=int)
    alpha, deep = (
        [fit[kind]["by_depth"][depth]["alpha"]["slope"] for kind in kinds]
        for depth in ("1", deepest)
    )
    lengths = [
        [part["length"]["slope"] for part in fit[kind]["by_depth"].values()] for kind in kinds
    ]
    return wrapped(
        f"Each further block multiplies the measured error by {blocks[0]:.2f}, the bound for the "
        f"given input by {blocks[1]:.1f} and the bound for all inputs by {blocks[2]:.1f} "
        f"(geometric means). The logarithms of the error and of both bounds were fitted by lines "
        f"in log alpha and log T. For networks with one block the slope in log alpha is "
        f"{alpha[0]:.2f} for the measured error, {alpha[1]:.2f} "
        f"for the bound for the given input and {alpha[2]:.2f} for the bound for all inputs. So "
        f"for one block the error and both bounds are nearly linear in alpha, like the error of "
        f"value-output and ReLU layers. "
        f"For networks with {deepest} blocks these three slopes are {deep[0]:.2f}, {deep[1]:.2f} "
        f"and {deep[2]:.2f}. The slope in log T depends on the number of blocks. It is "
        f"{min(lengths[0]):.2f} to {max(lengths[0]):.2f} for the measured error (the largest over "
        f"the T tokens), {min(lengths[1]):.2f} to {max(lengths[1]):.2f} for the bound "
        f"for the given input, "
        f"and at most {max(map(abs, lengths[2])):.2f} for the bound for all inputs."
    )
