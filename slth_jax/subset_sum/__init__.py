"""Solve millions of small subset-sum problems at once: find the sum closest to a value.

This subpackage does not depend on networks. The modules `solver` and `few` contain the public
functions `solve` and `solve_few`. `batch` chooses a program for the platform and splits a batch of
instances into tiles. `tile` rounds samples to integers; if there are too many samples to enumerate,
it first decides the largest samples greedily. `meet_in_the_middle` lists the subset sums of two
halves of the samples and finds the pair that adds up closest to the value. On CPUs `kernel`
compiles the same computation from the C++ files in `native`.
"""

from slth_jax.subset_sum.batch import LANES
from slth_jax.subset_sum.few import solve_few
from slth_jax.subset_sum.solver import MAX_EXACT, MAX_SAMPLES, PART, Solution, solve

__all__ = ["LANES", "MAX_EXACT", "MAX_SAMPLES", "PART", "Solution", "solve", "solve_few"]
