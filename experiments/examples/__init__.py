"""Small programs that use only the library's public functions.

`one_ticket` demonstrates the paper's theorem in one file. `digits_table` trains masks and controls
with several seeds and prints a table. `weight_times_score` and `bernoulli_masks` define custom
forms of edge-popup.
"""
