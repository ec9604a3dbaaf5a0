"""Guaranteed errors of tickets against measured ones.

`bounds` is the experiment; `trial` draws a target, a source and an input, prunes the source,
measures and bounds one ticket; `plots_bounds` draws.
"""
