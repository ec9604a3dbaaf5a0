"""Four notebooks to begin with; they use nothing but `slth_jax`.

    python -m experiments.notebooks [NAME ...]

executes the notebooks from top to bottom and writes them with their outputs (extra `notebooks`).
`run` executes a single notebook; the tests use it. Every notebook has a line ``QUICK = False``;
set to True, it makes the notebook small.
"""
