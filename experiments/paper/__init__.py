"""Figures 4, 5 and 6 of the paper: error against source width, input length and depth.

`targets` trains the paper's target, `drawn` draws targets, `data` makes the sequences, `sources`
draws random sources, and `errors` bounds the errors of tickets. The experiments of figures 4, 5 and
6 are in `hidden_dim`, `input_length` and `blocks`.
"""
