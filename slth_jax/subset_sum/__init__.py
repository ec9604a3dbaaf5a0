"""Random subset sums: the closest subset, exactly, for millions of small instances at once.

It imports nothing about networks. `solve` cuts a batch into tiles (`solver`); a tile is put into
fixed point, or settled from the largest sample down where there are too many to enumerate (`tile`);
the closest pair of two halves is found by merging (`meet_in_the_middle`).
"""

from slth_jax.subset_sum.batch import LANES
from slth_jax.subset_sum.solver import MAX_EXACT, MAX_SAMPLES, PART, Solution, solve

__all__ = ["LANES", "MAX_EXACT", "MAX_SAMPLES", "PART", "Solution", "solve"]
