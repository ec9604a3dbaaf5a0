"""Four notebooks to begin with; they use nothing but `slth_jax`.

    python -m experiments.notebooks [NAME ...]

executes them from top to bottom and writes them with their outputs (extra `notebooks`); `run` does
one, as the tests do. Every notebook has one line ``QUICK = False``, which makes it small.
"""
