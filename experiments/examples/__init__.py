"""Small programs that use the library as a stranger would.

`one_ticket` is the paper's theorem in one file. `digits_table` is a table of learned masks with
seeds and controls; `weight_times_score` and `bernoulli_masks` are forms of edge-popup of one's own.
"""
