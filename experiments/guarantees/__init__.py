"""What is guaranteed of tickets, held against what is measured.

`bounds` is the experiment; `trial` draws a target, a source and an input, prunes, measures and
bounds one ticket; `plots_bounds` draws.
"""
