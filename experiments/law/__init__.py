"""Measure the law of widths: how wide a random layer must be for a given error.

`width_law` is the experiment. `trial` draws a target and a source and measures one ticket.
`crossings` finds the width at which the error falls below a level. `regression` fits several
formulas for the law and compares them. `plots_law` plots the figures.
"""
