"""A rule for masks of a chosen density: each entry keeps at most k of its samples."""

from slth_jax import checks
from slth_jax.construction.rules.proof import in_order
from slth_jax.construction.rules.rule import Rule


def sparse(most: int) -> Rule:
    """Return the rule in which each entry is a subset sum of at most `most` samples.

    With m samples per entry the free factor's mask keeps at most the share ``most / m``. Units are
    assigned in order, as in the proof of Lemma 4; the sums are solved by `subset_sum.solve_few`.
    The error of a small share is paid for with more samples, see docs/bits.md (subset sums of fixed
    size: da Cunha et al. 2023, Natale et al. 2024).

    Args:
      most: k, at least 1.

    Raises:
      ValueError: `most` is not a whole number of at least 1.
    """
    most = checks.integer("most", most, low=1)
    return Rule("sparse", f"subset sums of at most {most} samples per entry", in_order, most=most)
