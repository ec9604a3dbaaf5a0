"""Figures 4, 5 and 6 of the paper: error against source width, input length and depth.

`targets` draws or trains the target, `data` makes the sequences, `sources` draws random sources,
and `errors` measures and bounds a ticket. One file per figure: `hidden_dim`, `input_length`,
`blocks`.
"""
