"""Strong lottery tickets for multi-head attention, in JAX.

A strong lottery ticket is a subnetwork of a random, never trained network: the source weights
times a binary mask. The modules, in the order in which they build on each other:

- `types`, `checks`: aliases and argument validation.
- `theory`: the bounds of the paper (arXiv:2511.04217) as plain functions.
- `initializers`, `subset_sum`, `supermask`, `attention`: the independent pieces.
- `transformer`, `gpt2`: networks made of them.
- `construction`, `edge_popup`: the two ways to find a ticket.
- `ticket`, `checkpoint`, `sweep`, `huggingface`: files, and thousands of trials at once.
"""

__version__ = "0.1.0"
