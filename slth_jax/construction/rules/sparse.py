"""The rule 'sparse': each entry of the target is a subset sum of at most k samples."""

from slth_jax import checks
from slth_jax.construction.rules.proof import in_order
from slth_jax.construction.rules.rule import Rule


def sparse(most: int) -> Rule:
    """Return the rule in which each entry is a subset sum of at most `most` samples.

    If each entry has m samples, the mask of `left` keeps at most the fraction ``most / m``. Units
    are assigned in order, as in the proof of Lemma 4; the sums are solved by
    `subset_sum.solve_few`. The smaller the kept fraction, the more samples are needed for the same
    error, see docs/bits.md (subset sums of fixed size: da Cunha et al. 2023, Natale et al. 2024).

    Args:
      most: k, the largest number of samples per entry, at least 1.

    Raises:
      ValueError: `most` is not a whole number of at least 1.
    """
    most = checks.integer("most", most, low=1)
    return Rule("sparse", f"subset sums of at most {most} samples per entry", in_order, most=most)
