"""Solve random subset sums exactly: the closest subset, for millions of small instances at once.

This subpackage contains no networks. `solver` contains the public function. `batch` chooses a
program for the platform and cuts a batch into tiles. `tile` turns samples into integers or, if
there are too many to enumerate, first decides the largest samples greedily. `meet_in_the_middle`
lists the sums of two halves and finds the closest pair. On CPUs `kernel` compiles the same
computation from the C++ files in `native`.
"""

from slth_jax.subset_sum.batch import LANES
from slth_jax.subset_sum.few import solve_few
from slth_jax.subset_sum.solver import MAX_EXACT, MAX_SAMPLES, PART, Solution, solve

__all__ = ["LANES", "MAX_EXACT", "MAX_SAMPLES", "PART", "Solution", "solve", "solve_few"]
