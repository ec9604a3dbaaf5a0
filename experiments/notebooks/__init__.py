"""Five introductory notebooks, which import nothing from `experiments`.

    python -m experiments.notebooks [NAME ...]

executes the notebooks from top to bottom and writes them with their outputs (extra `notebooks`).
`run` executes a single notebook; the tests use it. Every notebook has a line ``QUICK = False``;
``QUICK = True`` makes the computation small.
"""
