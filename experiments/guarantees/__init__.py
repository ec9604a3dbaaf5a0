"""Compare the guaranteed and the measured errors of tickets.

`bounds` is the experiment. `trial` draws a target, a source and an input, prunes the source, and
measures and bounds the error of the ticket. `plots_bounds` plots the figure.
"""
