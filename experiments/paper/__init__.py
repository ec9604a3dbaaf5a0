"""Figures 4, 5 and 6 of the paper: error against source width, input length and depth.

`targets` and `drawn` train or draw targets, `data` makes the sequences, `sources` draws random
sources, and `errors` bounds the errors of tickets. Each figure has a file with its experiment:
`hidden_dim`, `input_length` and `blocks`.
"""
